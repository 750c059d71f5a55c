package etcdtest

import (
	"context"
	"testing"
	"time"
)

func TestServerKeepsItsDataAndAddressOverARestart(t *testing.T) {
	s := New(t)
	client := s.Client()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := client.Put(ctx, "key", "value"); err != nil {
		t.Fatal(err)
	}
	at := s.Endpoint()
	s.Stop()
	s.Start()
	if s.Endpoint() != at {
		t.Fatalf("endpoint is %s after a restart, was %s", s.Endpoint(), at)
	}
	got, err := client.Get(ctx, "key")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "value" {
		t.Fatalf("got %v after a restart", got.Kvs)
	}
}
