package sinks_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/affleet/affleet/deploy/sinks"
)

func TestTheSettingsOfASinkAreChecked(t *testing.T) {
	good := sinks.Source{NATS: "nats://127.0.0.1:4222", Name: "one", From: "beginning", Every: time.Second, Clicks: 1}
	for _, from := range []string{"", "now", "beginning", "2026-12-24T18:00:00Z"} {
		s := good
		s.From = from
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", from, err)
		}
	}
	for want, change := range map[string]func(*sinks.Source){
		"it is beginning, now, or a time": func(s *sinks.Source) { s.From = "soon" },
		"must not contain dots":           func(s *sinks.Source) { s.Name = "a.b" },
		"must be above 0":                 func(s *sinks.Source) { s.Every = 0 },
		`"xxxxx@a" is no URL of NATS`:     func(s *sinks.Source) { s.NATS = "ada:s3cret%zz@a" },
	} {
		s := good
		change(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestTheExampleConfigurationsAreValid(t *testing.T) {
	for _, name := range []string{"affsink-postgres", "affsink-parquet"} {
		program := t.TempDir() + "/" + name
		if out, err := exec.Command("go", "build", "-o", program, "./cmd/"+name).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		cmd := exec.Command(program, "--config", name+".yaml", "--check-config")
		cmd.Env = append(os.Environ(), "AFF_NATS=")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "valid") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
