// Command affcontrol stores links in etcd and streams them to nodes.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"strings"

	"github.com/affleet/affleet/controlplane"
	"github.com/affleet/affleet/deploy/service"
)

func main() {
	cfg := controlplane.Config{Build: service.Version}
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
		},
		Check: func() error {
			cfg.Etcd = strings.FieldsFunc(etcd, func(r rune) bool { return r == ',' || r == ' ' })
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
