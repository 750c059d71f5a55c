// Command affnode answers redirects from memory and publishes every click.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/affleet/affleet/dataplane"
	"github.com/affleet/affleet/deploy/service"
)

func main() {
	host, _ := os.Hostname() // without one, --node must be given, and Validate says so
	name, _, _ := strings.Cut(host, ".")
	cfg := dataplane.Config{Build: service.Version}
	var control, admin, proxies, geoip string
	os.Exit(service.Server{
		Name:    "affnode",
		Summary: "affnode answers redirects from memory and publishes every click to NATS JetStream.",
		Example: "affnode --control 10.0.0.1:7070,10.0.0.2:7070 --nats nats://10.0.0.3:4222 --region eu",
		Flags: func(fs *flag.FlagSet) {
			fs.StringVar(&control, "control", "127.0.0.1:7070", "`addresses` of control planes, separated by commas")
			fs.StringVar(&cfg.Listen, "listen", ":8080", "`address` for redirects")
			fs.StringVar(&admin, "admin", ":9091", "`address` for /livez, /readyz, /metrics, /state and /explain; not for the public")
			fs.StringVar(&cfg.NATS, "nats", "nats://127.0.0.1:4222", "`URLs` of NATS servers, separated by commas")
			fs.StringVar(&cfg.Region, "region", "local", "`name` of the region")
			fs.StringVar(&cfg.Node, "node", name, "`name` of this node, unique in the fleet")
			fs.StringVar(&cfg.DataDir, "data-dir", "affnode.data", "`folder` for the last known good state and the spool")
			fs.StringVar(&cfg.Bootstrap, "bootstrap", "", "`place` of the first state of a new node to which no control plane gives one: a state file, its URL, or host:port of a node's --admin")
			fs.IntVar(&cfg.GuardShrink, "guard-shrink", 20, "`percent` of the links that a version may remove unless it was released; 100: all")
			fs.IntVar(&cfg.GuardGrow, "guard-grow", 10, "`times` as many links that a version may lead to unless it was released")
			fs.IntVar(&cfg.GuardFloor, "guard-floor", 1000, "`links` below which a node takes any version")
			fs.Int64Var(&cfg.MaxEntries, "max-entries", 1<<28, "`resources` that a node takes in all")
			fs.Int64Var(&cfg.MaxStateBytes, "max-state-bytes", 32<<30, "`bytes` that all of them may take")
			fs.IntVar(&cfg.MaxEntryBytes, "max-entry-bytes", 1<<20, "`bytes` that a link may take to be served; set that of affcontrol no higher")
			fs.StringVar(&cfg.ClickLevel, "click-level", "process", "what a recorded click survives: memory (a clean stop), process (SIGKILL) or fsync (a power cut); a `level`")
			fs.DurationVar(&cfg.ClickSync, "click-sync", 10*time.Millisecond, "`window` of clicks that a power cut may take at level fsync; a redirect never waits for it")
			fs.StringVar(&cfg.ClickAddress, "click-address", "truncated", "`form` in which client addresses are recorded: full, truncated, or hashed with a key that changes daily (UTC); Sec-GPC: 1 truncates always")
			fs.StringVar(&cfg.ClickHashKey, "click-hash-key", "", "`file` of a secret, 32 bytes or more, that makes the daily keys: nodes that share it give an address the same hash on one day; default: keys are random, and each start of each node has its own")
			fs.StringVar(&cfg.ClickOmit, "click-omit", "", "`fields` that are not recorded, separated by commas: address, user-agent, referrer, languages, host, path, destination, parameters, country, asn")
			fs.DurationVar(&cfg.ClickKeep, "click-keep", 10*time.Minute, "`time` for which clicks are kept behind their acknowledgement, to publish again what the stream loses; negative: none")
			fs.Int64Var(&cfg.SpoolBytes, "spool-bytes", 1<<30, "`bytes` that clicks may take until NATS has them")
			fs.Int64Var(&cfg.StreamBytes, "stream-bytes", 0, "`bytes` that the stream may take, if this node creates it; 0: 10 GiB, or what the server has")
			fs.IntVar(&cfg.MaxHead, "max-head", 16<<10, "`bytes` of a request head")
			fs.DurationVar(&cfg.HeadTimeout, "head-timeout", 5*time.Second, "`time` for a request head, or a TLS handshake")
			fs.DurationVar(&cfg.IdleTimeout, "idle-timeout", 75*time.Second, "`time` that a connection may be without a request")
			fs.IntVar(&cfg.MaxConns, "max-conns", 0, "`connections` at a time; 0: 65536, at most 3/4 of the open files allowed")
			fs.IntVar(&cfg.MaxConnsPerAddr, "max-conns-per-addr", 0, "`connections` from one IPv4 address or IPv6 /64; 0: a quarter of all")
			fs.IntVar(&cfg.Loops, "loops", 0, "`number` of event loops that answer plain HTTP, on Linux; 0: one for each core; negative: none, and each connection has a goroutine")
			fs.StringVar(&cfg.ListenTLS, "listen-tls", "", "`address` for redirects over TLS, with HTTP/2; none by default")
			fs.StringVar(&cfg.TLSCerts, "tls-certs", "", "`folder` of NAME.crt and NAME.key, re-read when they change; the first is the default")
			fs.StringVar(&proxies, "trusted-proxies", "", "`CIDRs` of peers that may name the client, separated by commas")
			fs.BoolVar(&cfg.ProxyProtocol, "proxy-protocol", false, "trusted proxies begin a connection with a PROXY header, v1 or v2")
			fs.StringVar(&cfg.ForwardedHeader, "forwarded-header", "none", "`header` in which they name it: none, x-forwarded-for or forwarded")
			fs.StringVar(&geoip, "geoip", "", "MaxMind database `files` (city, country, ASN), separated by commas; the first that knows wins; re-read when replaced")
			fs.StringVar(&cfg.GeoHeaders, "geo-headers", "", "`headers` in which trusted proxies say where the client is: cloudflare, cloudfront, fastly or country=CF-IPCountry,asn=X-ASN")
			fs.StringVar(&cfg.Bots, "bots", "", "`file` of regular expressions of user agents of bots, one per line, re-read when replaced; default: a built-in list")
			fs.Func("datacenters", "`file` of networks of data centres, one CIDR prefix per line, re-read when replaced; may be repeated", func(path string) error {
				cfg.Datacenters = append(cfg.Datacenters, path)
				return nil
			})
			fs.StringVar(&cfg.LabelOff, "label-off", "", "`labels` that requests are never given, separated by commas: bot, datacenter, prefetch, preview, head, no_ua, odd_headers, rate, duplicate, replay, blocked")
			fs.Int64Var(&cfg.LabelMemory, "label-memory", 16<<20, "`bytes` for all that labels remember, whatever the traffic")
			fs.DurationVar(&cfg.LabelRateWindow, "label-rate-window", time.Minute, "`time` over which requests are counted for the label rate")
			fs.IntVar(&cfg.LabelRate, "label-rate", 600, "`requests` of one address in that time from which on they are labelled")
			fs.IntVar(&cfg.LabelRatePerLink, "label-rate-per-link", 120, "`requests` of one address for one link, likewise")
			fs.DurationVar(&cfg.LabelDuplicate, "label-duplicate", 30*time.Second, "`time` after which the same address, user agent and link are no duplicate any more")
			fs.DurationVar(&cfg.LabelReplay, "label-replay", time.Hour, "`time` after which the same click id (gclid, fbclid, ...) of a link is no replay any more")
			fs.BoolVar(&cfg.ReusePort, "reuse-port", false, "take the addresses over, when ready, from a process that also says so")
			fs.DurationVar(&cfg.Drain, "drain", 10*time.Second, "`time` to answer what is in flight at the end")
			fs.DurationVar(&cfg.Flush, "flush", 10*time.Second, "`time` to publish what is in the spool at the end; 2 s are enough without NATS where all clicks are published and the next start can tell the rest")
		},
		Check: func() error {
			cfg.Control, cfg.TrustedProxies, cfg.GeoIP = split(control), split(proxies), split(geoip)
			for _, s := range []struct {
				name string
				zero bool
			}{
				{"max-head", cfg.MaxHead == 0},
				{"head-timeout", cfg.HeadTimeout == 0},
				{"idle-timeout", cfg.IdleTimeout == 0},
				{"drain", cfg.Drain == 0},
				{"flush", cfg.Flush == 0},
				{"click-sync", cfg.ClickSync == 0},
				{"click-keep", cfg.ClickKeep == 0},
				{"spool-bytes", cfg.SpoolBytes == 0},
				{"guard-shrink", cfg.GuardShrink == 0},
				{"guard-grow", cfg.GuardGrow == 0},
				{"guard-floor", cfg.GuardFloor == 0},
				{"max-entries", cfg.MaxEntries == 0},
				{"max-state-bytes", cfg.MaxStateBytes == 0},
				{"max-entry-bytes", cfg.MaxEntryBytes == 0},
			} {
				if s.zero { // which a Config takes for its default
					return fmt.Errorf("--%s must not be 0", s.name)
				}
			}
			return cfg.Validate()
		},
		Run: func(ctx context.Context, log *slog.Logger) error {
			cfg.Loops = share(cfg.Loops)
			registry := service.NewRegistry()
			cfg.Log, cfg.Registerer = log, registry
			cfg.TuneCollector, cfg.LoopsFirst = os.Getenv("GOGC") == "", true
			node, err := dataplane.New(cfg)
			if err != nil {
				return err
			}
			return service.Serve(ctx, service.Part{Admin: admin, Healthy: node.Healthy, Metrics: registry, Pages: pages(node), Run: node.Run, Close: node.Close})
		},
	}.Main(os.Args[1:], os.Stdout, os.Stderr))
}

// pages are what a node's admin address shows beside what every server's does.
func pages(node *dataplane.Node) []service.Page {
	return []service.Page{
		{Pattern: "GET /state", Handler: node.ServeState},
		{Pattern: "GET /explain", Handler: node.Explain().ServeHTTP},
	}
}

// share gives the number of event loops that a setting means, and sees to it that
// all else has room beside them: loops keep Ps of Go's scheduler for themselves,
// and the kernel shares the cores between all. On one core that is one P: of
// several, one always looks for what another has to do, and takes the core for it.
func share(loops int) int {
	cores := runtime.GOMAXPROCS(0)
	switch {
	case loops == 0:
		loops = cores
	case loops < 0:
		loops = 0
	}
	runtime.GOMAXPROCS(max(cores, loops) + max(1, cores/2))
	return loops
}

// split takes a list apart.
func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}
