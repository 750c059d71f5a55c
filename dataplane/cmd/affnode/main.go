// Command affnode answers redirects from memory and publishes every click.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/affleet/affleet/dataplane"
	"github.com/affleet/affleet/deploy/service"
)

func main() {
	host, _ := os.Hostname() // without one, --node must be given, and Validate says so
	name, _, _ := strings.Cut(host, ".")
	cfg := dataplane.Config{Build: service.Version}
	var control, admin string
	os.Exit(service.Server{
		Name:    "affnode",
		Summary: "affnode answers redirects from memory and publishes every click to NATS JetStream.",
		Example: "affnode --control 10.0.0.1:7070,10.0.0.2:7070 --nats nats://10.0.0.3:4222 --region eu",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&control, "control", "127.0.0.1:7070", "`addresses` of control planes, separated by commas")
			fs.StringVar(&cfg.Listen, "listen", ":8080", "`address` for redirects")
			fs.StringVar(&admin, "admin", ":9091", "`address` for /livez, /readyz and /metrics; not for the public")
			fs.StringVar(&cfg.NATS, "nats", "nats://127.0.0.1:4222", "`URLs` of NATS servers, separated by commas")
			fs.StringVar(&cfg.Region, "region", "local", "`name` of the region")
			fs.StringVar(&cfg.Node, "node", name, "`name` of this node, unique in the fleet")
			fs.StringVar(&cfg.DataDir, "data-dir", "affnode.data", "`folder` for the last known good state and the spool")
			fs.StringVar(&cfg.ClickLevel, "click-level", "process", "what a recorded click survives: memory (a clean stop) or process (SIGKILL); a `level`")
			fs.StringVar(&cfg.ClickAddress, "click-address", "truncated", "`form` in which client addresses are recorded: full or truncated")
			fs.Int64Var(&cfg.SpoolBytes, "spool-bytes", 1<<30, "`bytes` that clicks may take until NATS has them")
			fs.Int64Var(&cfg.StreamBytes, "stream-bytes", 0, "`bytes` that the stream may take, if this node creates it; 0: 10 GiB, or what the server has")
			fs.DurationVar(&cfg.Drain, "drain", 10*time.Second, "`time` to answer what is in flight at the end")
			fs.DurationVar(&cfg.Flush, "flush", 10*time.Second, "`time` to publish what is in the spool at the end")
		},
		Check: func() error {
			cfg.Control = strings.FieldsFunc(control, func(r rune) bool { return r == ',' || r == ' ' })
			return cfg.Validate()
		},
		Run: func(ctx context.Context, log *slog.Logger) error {
			registry := service.NewRegistry()
			cfg.Log, cfg.Registerer = log, registry
			node, err := dataplane.New(cfg)
			if err != nil {
				return err
			}
			return service.Serve(ctx, service.Part{Admin: admin, Healthy: node.Healthy, Metrics: registry, Run: node.Run, Close: node.Close})
		},
	}.Main(os.Args[1:], os.Stdout, os.Stderr))
}
