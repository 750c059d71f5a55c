package cli_test

import (
	"context"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/dataplane/clickstream"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
)

// guardReports is "guard FILE": affguard reports what the lines of the file say, in
// JSON.
func guardReports(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: guard FILE")
	}
	withStream(ts, func(ctx context.Context, js jetstream.JetStream) error {
		if _, err := js.CreateStream(ctx, clickstream.FindingsConfig(1)); err != nil {
			return err
		}
		for line := range strings.Lines(ts.ReadFile(args[0])) {
			r := new(clickv1.Report)
			if err := protojson.Unmarshal([]byte(line), r); err != nil {
				return err
			}
			subject := clickstream.FindingSubject(r.GetFinding().GetDetector())
			if r.GetDecision() != nil {
				subject = clickstream.DecisionSubject(r.GetDecision().GetDetector())
			}
			data, err := proto.Marshal(r)
			if err != nil {
				return err
			}
			if _, err := js.Publish(ctx, subject, data); err != nil {
				return err
			}
		}
		return nil
	})
}
