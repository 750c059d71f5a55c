// Command affcontrol stores links in etcd and streams them to nodes.
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/affleet/affleet/controlplane"
	"github.com/affleet/affleet/deploy/service"
)

func main() {
	cfg := controlplane.Config{Build: service.Version, GuardShrink: 0.2, GuardGrow: 10}
	var etcd, admin string
	os.Exit(service.Server{
		Name:    "affcontrol",
		Summary: "affcontrol stores links in etcd and streams them to nodes.",
		Example: "affcontrol --etcd http://10.0.0.1:2379,http://10.0.0.2:2379 --listen :7070",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&etcd, "etcd", "http://127.0.0.1:2379", "`URLs` of etcd members, separated by commas")
			fs.StringVar(&cfg.Listen, "listen", ":7070", "`address` for gRPC: affctl, programs and nodes")
			fs.StringVar(&cfg.Advertise, "advertise", "", "`address` at which other replicas reach this one; default: the one it listens on")
			fs.StringVar(&admin, "admin", ":9090", "`address` for /livez, /readyz and /metrics; not for the public")
			fs.Int64Var(&cfg.LogBytes, "log-bytes", 256<<20, "`bytes` of changes that are kept in memory for nodes that lag")
			fs.Var((*percent)(&cfg.GuardShrink), "guard-shrink", "`share` of the links that may go within a minute without affctl fleet release; 100%: all")
			fs.Var((*times)(&cfg.GuardGrow), "guard-grow", "how many `times` as many links a write may make; 0: any")
			fs.Int64Var(&cfg.GuardFloor, "guard-floor", 1000, "fewer `links` than these are not guarded")
			fs.Int64Var(&cfg.MaxEntries, "max-entries", 0, "the most `resources`; 0: no limit")
			fs.Int64Var(&cfg.MaxBytes, "max-bytes", 0, "the most `bytes` of all resources; 0: no limit")
			fs.IntVar(&cfg.MaxEntryBytes, "max-entry-bytes", 1<<20, "`bytes` that one resource may take; nodes do not serve links above theirs")
			fs.IntVar(&cfg.Snapshots, "snapshots", 16, "`snapshots` that are sent to new nodes at once; the others come back later")
			fs.IntVar(&cfg.MaxStreams, "max-streams", 20_000, "the most `nodes`")
			fs.IntVar(&cfg.MaxStreamsPerAddress, "max-streams-per-address", 10_000, "the most `nodes` at one address")
			fs.DurationVar(&cfg.AuditInterval, "audit-interval", time.Minute, "about how often the state is compared with etcd; negative: never")
		},
		Check: func() error {
			cfg.Etcd = strings.FieldsFunc(etcd, func(r rune) bool { return r == ',' || r == ' ' })
			if cfg.GuardFloor == 0 {
				cfg.GuardFloor = 1 // for the server, 0 is the default
			}
			if cfg.MaxEntryBytes == 0 { // likewise
				return errors.New("--max-entry-bytes must not be 0")
			}
			return cfg.Validate()
		},
		Run: func(ctx context.Context, log *slog.Logger) error {
			registry := service.NewRegistry()
			cfg.Log, cfg.Registerer = log, registry
			server, err := controlplane.New(cfg)
			if err != nil {
				return err
			}
			return service.Serve(ctx, service.Part{Admin: admin, Healthy: server.Healthy, Metrics: registry, Run: server.Run, Close: server.Close})
		},
	}.Main(os.Args[1:], os.Stdout, os.Stderr))
}

// percent is a share that is written as "20%". All links may go: not guarded.
type percent float64

func (p *percent) String() string {
	return strconv.FormatFloat(100*max(float64(*p), 0), 'f', -1, 64) + "%"
}

func (p *percent) Set(text string) error {
	n, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || !(n > 0 && n <= 100) {
		return errors.New("it is a share of more than 0% up to 100%, such as 20%")
	}
	if *p = percent(n / 100); n == 100 {
		*p = -1
	}
	return nil
}

// times is a factor that is written as "10x". None: not guarded.
type times float64

func (t *times) String() string { return strconv.FormatFloat(max(float64(*t), 0), 'f', -1, 64) + "x" }

func (t *times) Set(text string) error {
	n, err := strconv.ParseFloat(strings.TrimSuffix(text, "x"), 64)
	if err != nil || !(n == 0 || n > 1) {
		return errors.New("it is a factor of more than 1x, such as 10x, or 0")
	}
	if *t = times(n); n == 0 {
		*t = -1
	}
	return nil
}
