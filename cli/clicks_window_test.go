package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// startStream runs NATS with a stream of messages, for an app whose clock is ahead. It
// gives when the stream took each of them.
func startStream(t *testing.T, ahead time.Duration, messages ...[]byte) (a *app, stdout, stderr *bytes.Buffer, stored []string) {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true, JetStream: true, StoreDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("NATS server is not ready after 20 s")
	}
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	a = newApp(strings.NewReader(""), stdout, stderr, func(name string) string {
		return map[string]string{envNATS: s.ClientURL(), envConfig: t.TempDir() + "/config.yaml"}[name]
	})
	a.now = func() time.Time { return time.Now().Add(ahead) }
	conn, js, err := a.jetStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: clickstream.StreamName, Subjects: []string{clickstream.Subjects}})
	if err != nil {
		t.Fatal(err)
	}
	for i, data := range messages {
		if _, err := js.Publish(t.Context(), clickstream.Subject("eu", "n"), data); err != nil {
			t.Fatal(err)
		}
		m, err := stream.GetMsg(t.Context(), uint64(i+1))
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, m.Time.Format(time.RFC3339Nano))
	}
	return a, stdout, stderr, stored
}

// twoClicks are a message.
func twoClicks(t *testing.T) []byte { return clicksFrom(t, 1, 0) }

// clicksFrom is a message with two clicks from a sequence on, whose ledger has lost so many.
func clicksFrom(t *testing.T, first, lost uint64) []byte {
	t.Helper()
	data, err := proto.Marshal(&clickv1.Batch{
		Node: "n", Region: "eu", Boot: 1, FirstSequence: first, Clicks: []*clickv1.Click{{}, {}},
		Ledger: &clickv1.Ledger{
			Answered: first + 1, Recorded: first + 1 - lost,
			Dropped: []*clickv1.Drop{{Reason: clickv1.DropReason_DROP_REASON_CORRUPT, Clicks: lost}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A window that ends now ends at the time of the stream: that is where the next begins.
func TestAWindowUntilNowEndsAtTheTimeOfTheStream(t *testing.T) {
	for _, args := range []string{"clicks export -", "clicks verify", "stats"} {
		a, stdout, stderr, _ := startStream(t, 2*time.Hour, twoClicks(t))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		root := newRoot(a)
		root.SetArgs(append(strings.Fields(args), "--from", "24h"))
		if err := root.ExecuteContext(ctx); err != nil {
			t.Errorf("%s: %v\n%s", args, err, stderr)
		}
		if err := a.out.Flush(); err != nil || stdout.Len() == 0 {
			t.Errorf("%s: %q, %v", args, stdout, err)
		}
		root = newRoot(a)
		root.SetArgs(append(strings.Fields(args), "--from", "1h"))
		if err := root.ExecuteContext(ctx); err == nil || !strings.Contains(err.Error(), "by the clock of NATS") {
			t.Errorf("%s of what is to come: %v", args, err)
		}
	}
}

// What lies around a window is read to know what came before, and what came late.
func TestAMessageThatCannotBeReadCountsInItsWindowOnly(t *testing.T) {
	a, stdout, stderr, stored := startStream(t, 0, []byte("none of ours"), twoClicks(t), []byte("none of ours"))
	for _, test := range []struct {
		from, to string
		fails    bool
	}{{stored[1], stored[2], false}, {stored[0], stored[2], true}} {
		for _, args := range []string{"clicks export -", "clicks verify"} {
			stdout.Reset()
			stderr.Reset()
			root := newRoot(a)
			root.SetArgs(append(strings.Fields(args), "--from", test.from, "--to", test.to))
			err := errors.Join(root.ExecuteContext(t.Context()), a.out.Flush())
			if (err != nil) != test.fails || !strings.Contains(stdout.String()+stderr.String(), "message 1 on aff.clicks.v1.eu.n: malformed batch") {
				t.Errorf("%s of %+v: %v\n%s%s", args, test, err, stdout, stderr)
			}
		}
	}
}

// What a ledger counts may be what was missing before the window.
func TestVerifyOfAWindowSaysWhatIsFromBeforeIt(t *testing.T) {
	for name, test := range map[string]struct {
		messages [][]byte // the last one is of the window
		fails    bool
		says     string
	}{
		"a gap that is counted in the window": {
			[][]byte{twoClicks(t), clicksFrom(t, 6, 0), clicksFrom(t, 8, 3)},
			false,
			"from before: node n, boot 00000000: 3 were counted as dropped by now\nproven: 2 answered = 2 in the stream + 0 dropped\n",
		},
		"one in it as well, and as many are counted": {
			[][]byte{twoClicks(t), clicksFrom(t, 6, 0), clicksFrom(t, 11, 3)},
			true,
			"clicks 8 to 10 (3) are missing; whether the node counts these as dropped, or others from before or behind, cannot be known\n",
		},
		"what no gap explains": {
			[][]byte{twoClicks(t), clicksFrom(t, 3, 0), clicksFrom(t, 5, 1)}, true, "1 are in the stream and counted as dropped as well\n",
		},
		"what a gap may explain of which nothing was read": {
			[][]byte{clicksFrom(t, 6, 0), clicksFrom(t, 8, 3)},
			false,
			"3 were counted as dropped by now; of 3 of them nothing was read that tells whether they are in the stream as well\nproven: ",
		},
	} {
		a, stdout, _, stored := startStream(t, 0, test.messages...)
		root := newRoot(a)
		root.SetArgs([]string{"clicks", "verify", "--from", stored[len(stored)-1]})
		err := errors.Join(root.ExecuteContext(t.Context()), a.out.Flush())
		if (err != nil) != test.fails || !strings.Contains(stdout.String(), test.says) {
			t.Errorf("%s: %v\n%s", name, err, stdout)
		}
	}
}

// However late: what is read behind a window in any case ends sooner.
func TestAGapOfAWindowIsLookedForUntilNow(t *testing.T) {
	for name, later := range map[string][]byte{"it has come": clicksFrom(t, 3, 0), "it is counted": clicksFrom(t, 9, 2)} {
		a, _, stderr, stored := startStream(t, 0, twoClicks(t), clicksFrom(t, 5, 0), clicksFrom(t, 7, 0), later)
		conn, js, err := a.jetStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		until, err := time.Parse(time.RFC3339Nano, stored[2])
		if err != nil {
			t.Fatal(err)
		}
		var audit clickstream.Audit
		options := clickstream.Options{Until: until, Audit: &audit}
		if err := consumeAudited(t.Context(), js, options, time.Now(), func(context.Context, *clickstream.Batch) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if account := audit.Accounts(); len(account) != 1 || len(troubles(account)) > 0 || account[0].Last != 6 {
			t.Errorf("%s: %+v\n%s", name, account, stderr)
		}
	}
}
