package deploy_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/affleet/affleet"

// rules says what a part of the tree must never reach through the packages of
// this module, and why. A package that matches except may be reached after all.
var rules = []struct {
	from, notFrom []string // folders; notFrom is below from and goes free
	never, except []string // folders or packages
	because       string
}{
	{
		from:    []string{"/controlplane"},
		never:   []string{module + "/dataplane", module + "/cli", module + "/deploy"},
		except:  []string{module + "/deploy/service"},
		because: "the planes meet only in proto",
	},
	{
		from:    []string{"/dataplane"},
		never:   []string{module + "/controlplane", module + "/cli", module + "/deploy"},
		except:  []string{module + "/deploy/service"},
		because: "the planes meet only in proto",
	},
	{
		from:    []string{"/cli"},
		never:   []string{module + "/controlplane", module + "/dataplane", module + "/deploy"},
		except:  []string{module + "/deploy/service", module + "/dataplane/clickstream"},
		because: "affctl is a client like any other: it knows contracts and the public click stream",
	},
	{
		from:    []string{"/controlplane", "/dataplane"},
		notFrom: []string{"/controlplane/cmd", "/dataplane/cmd"},
		never:   []string{module + "/deploy"},
		because: "a plane does not know what process it runs in; only the main functions do",
	},
	{
		from:    []string{"/dataplane"},
		never:   []string{"go.etcd.io/"},
		because: "a redirect must not depend on a database",
	},
	{
		from:    []string{"/controlplane"},
		never:   []string{"github.com/nats-io/"},
		because: "links and clicks fail apart from each other",
	},
	{
		from:    []string{"/dataplane/internal/table", "/dataplane/internal/label", "/dataplane/internal/redirect"},
		never:   []string{"google.golang.org/grpc", "github.com/nats-io/", "encoding/json", "log/slog"},
		because: "the redirect path decides in memory, without reflection and logs",
	},
	{
		from:    []string{"/dataplane/internal/click"},
		notFrom: []string{"/dataplane/internal/click/publish"},
		never:   []string{"google.golang.org/grpc", "github.com/nats-io/", "encoding/json", "log/slog"},
		because: "recording a click needs no network; publishing it is a room of its own",
	},
	{
		from:    []string{"/dataplane/internal/guard"},
		notFrom: []string{"/dataplane/internal/guard/process"},
		never:   []string{"google.golang.org/grpc", "github.com/nats-io/", "log/slog"},
		except:  []string{module + "/dataplane/clickstream", module + "/proto/link"},
		because: "what is found depends on the clicks alone; consuming and deciding is a room of its own",
	},
	{
		from:    []string{"/proto/link"},
		never:   []string{module + "/controlplane", module + "/dataplane", module + "/cli", module + "/deploy", "google.golang.org/grpc", "net/http", "log", "os"},
		because: "what a link means is pure",
	},
	{
		from:    []string{"/proto/visitor", "/proto/explain"},
		never:   []string{module + "/controlplane", module + "/dataplane", module + "/cli", module + "/deploy", "google.golang.org/grpc"},
		because: "nodes and affctl share it",
	},
	{
		from:    []string{"/proto/aff"},
		never:   []string{module + "/controlplane", module + "/dataplane", module + "/cli", module + "/deploy", module + "/proto/link"},
		because: "contracts know nobody",
	},
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

// TestImportsPointTowardProto walks the imports of this module's packages.
// Edges to other modules count where one of this module's packages draws them.
func TestImportsPointTowardProto(t *testing.T) {
	imports := listPackages(t)
	for _, rule := range rules {
		for _, from := range rule.from {
			matched := false
			for path := range imports {
				free := slices.ContainsFunc(rule.notFrom, func(n string) bool { return within(path, module+n) })
				if within(path, module+from) && !free {
					matched = true
					for _, trail := range reach(imports, path, rule.never, rule.except) {
						t.Errorf("%s\n\tbut %s", strings.Join(trail, " -> "), rule.because)
					}
				}
			}
			if !matched {
				t.Errorf("no package is under %s: the rule watches nothing", from)
			}
		}
	}
}

func listPackages(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	imports := map[string][]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return imports
		} else if err != nil {
			t.Fatal(err)
		}
		imports[p.ImportPath] = p.Imports
	}
}

// reach gives a trail to each forbidden import that start reaches.
func reach(imports map[string][]string, start string, never, except []string) (trails [][]string) {
	seen := map[string]bool{start: true}
	queue := [][]string{{start}}
	for len(queue) > 0 {
		trail := queue[0]
		queue = queue[1:]
		for _, next := range imports[trail[len(trail)-1]] {
			if seen[next] {
				continue
			}
			seen[next] = true
			longer := append(slices.Clone(trail), next)
			allowed := slices.ContainsFunc(except, func(e string) bool { return within(next, e) })
			switch {
			case !allowed && slices.ContainsFunc(never, func(n string) bool { return within(next, n) }):
				trails = append(trails, longer)
			case strings.HasPrefix(next, module) && !allowed:
				queue = append(queue, longer)
			}
		}
	}
	return trails
}

// within says whether path is the package or folder, or below it.
func within(path, folder string) bool {
	if strings.HasSuffix(folder, "/") {
		return strings.HasPrefix(path, folder)
	}
	return path == folder || strings.HasPrefix(path, folder+"/")
}
