// Command affguard looks for fraud in the stream of clicks.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/affleet/affleet/dataplane"
	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/deploy/service"
)

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	if len(os.Args) > 1 && os.Args[1] == "replay" {
		os.Exit(replayMain(os.Args[2:]))
	}
	host, _ := os.Hostname() // without one, --name must be given, and Check says so
	name, _, _ := strings.Cut(host, ".")
	var cfg dataplane.GuardConfig
	var control, admin string
	os.Exit(service.Server{
		Name:    "affguard",
		Summary: "affguard looks for fraud in the stream of clicks, publishes what it finds, and makes blocks under the policy. Of several, one works. \"affguard replay\" looks at the past.",
		Example: "affguard --control 10.0.0.1:7070,10.0.0.2:7070 --nats nats://10.0.0.3:4222\naffguard replay --from 24h --policy policy.yaml",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&control, "control", "127.0.0.1:7070", "`addresses` of control planes, separated by commas")
			fs.StringVar(&cfg.NATS, "nats", "nats://127.0.0.1:4222", "`URLs` of NATS servers, separated by commas")
			fs.StringVar(&cfg.Name, "name", name, "`name` of this detector, unique among those of the fleet")
			fs.StringVar(&admin, "admin", ":9092", "`address` for /livez, /readyz and /metrics; not for the public")
			fs.DurationVar(&cfg.Lease, "lease", 5*time.Second, "`time` after which another detector leads, when the one that does says nothing")
			fs.DurationVar(&cfg.Checkpoint, "checkpoint", 5*time.Minute, "`time` between two checkpoints in NATS; what came since the last one is read again at a start")
			fs.DurationVar(&cfg.Rebuild, "rebuild", 25*time.Hour, "`time` of the past that is read when there is no checkpoint")
		},
		Check: func() error {
			cfg.Control = strings.FieldsFunc(control, func(r rune) bool { return r == ',' || r == ' ' })
			switch {
			case cfg.Lease < time.Second:
				return errors.New("lease: it is at least 1s")
			case cfg.Checkpoint < time.Second, cfg.Rebuild < time.Second:
				return errors.New("checkpoint and rebuild: they are at least 1s")
			case cfg.Name == "":
				return errors.New("name: it is missing, and the host has none")
			case len(cfg.Control) == 0:
				return errors.New("control: it is missing")
			}
			if err := clickstream.ValidateURLs(cfg.NATS); err != nil {
				return fmt.Errorf("nats: %w", err)
			}
			return nil
		},
		Run: func(ctx context.Context, log *slog.Logger) error {
			registry := service.NewRegistry()
			cfg.Log, cfg.Registerer = log, registry
			guard, err := dataplane.NewGuard(cfg)
			if err != nil {
				return err
			}
			return service.Serve(ctx, service.Part{Admin: admin, Healthy: guard.Healthy, Metrics: registry, Run: guard.Run, Close: guard.Close})
		},
	}.Main(os.Args[1:], os.Stdout, os.Stderr))
}

// collectAt is the growth of the heap, in percent, at which the collector runs,
// unless GOGC says otherwise. What the detector knows are large blocks without
// pointers: a collection takes a millisecond, and memory is what counts.
const collectAt = 20
