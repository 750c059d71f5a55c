// Command afflocal runs a whole fleet in one process, for trying things out.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"text/tabwriter"

	"github.com/affleet/affleet/deploy/local"
	"github.com/affleet/affleet/deploy/service"
)

func main() {
	var opts local.Options
	os.Exit(service.Server{
		Name:    "afflocal",
		Summary: "afflocal runs a whole fleet in one process: etcd, NATS, a control plane, nodes and a fraud detector.",
		Example: "afflocal --nodes 5 --data-dir ./fleet",
		Flags: func(fs *flag.FlagSet) {
			fs.IntVar(&opts.Nodes, "nodes", 3, "`number` of nodes")
			fs.StringVar(&opts.HTTP, "http", "127.0.0.1:8080", "`address` of the first node; the next ones take the next ports")
			fs.StringVar(&opts.Control, "control", "127.0.0.1:7070", "`address` of the control plane")
			fs.StringVar(&opts.Etcd, "etcd", "127.0.0.1:2379", "`address` of etcd")
			fs.StringVar(&opts.NATS, "nats", "127.0.0.1:4222", "`address` of NATS")
			fs.StringVar(&opts.Admin, "admin", "127.0.0.1:9090", "`address` of the control plane's health and metrics; the nodes and the fraud detector take the next ports")
			fs.StringVar(&opts.DataDir, "data-dir", "", "`folder` that is kept; without it, a temporary one is removed")
			fs.BoolVar(&opts.Guard, "guard", true, "run the fraud detector")
			fs.BoolVar(&opts.Samples, "samples", true, "write sample links when there are none")
		},
		Check:    func() error { return check(&opts) },
		LogLevel: "warn",
		Run: func(ctx context.Context, log *slog.Logger) error {
			opts.Log = log
			fleet, err := local.Start(ctx, opts)
			if err != nil {
				return err
			}
			greet(os.Stdout, fleet, opts.Samples)
			err = fleet.Wait(ctx)
			fmt.Println("stopping")
			if closed := fleet.Close(); err == nil {
				err = closed
			}
			return err
		},
	}.Main(os.Args[1:], os.Stdout, os.Stderr))
}

func check(opts *local.Options) error {
	if opts.Nodes < 1 {
		return fmt.Errorf("nodes: %d is not at least 1", opts.Nodes)
	}
	return nil
}

// greet prints where everything is, and what to try.
func greet(w io.Writer, f *local.Fleet, samples bool) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(tw, "PART\tADDRESS\tHEALTH AND METRICS\n")
	fmt.Fprintf(tw, "control plane\t%s (gRPC)\thttp://%s/metrics\n", f.Control, f.Admin[0])
	for i, addr := range f.HTTP {
		fmt.Fprintf(tw, "node-%d\thttp://%s\thttp://%s/metrics\n", i+1, addr, f.Admin[i+1])
	}
	if n := len(f.HTTP) + 1; len(f.Admin) > n {
		fmt.Fprintf(tw, "guard\t\thttp://%s/metrics\n", f.Admin[n])
	}
	fmt.Fprintf(tw, "etcd\t%s\t\nNATS\t%s\t\n", f.Etcd, f.NATS)
	_ = tw.Flush()

	env := ""
	if f.Control != "127.0.0.1:7070" {
		env += "AFFCTL_SERVER=" + f.Control + " "
	}
	if f.NATS != "nats://127.0.0.1:4222" {
		env += "AFFCTL_NATS=" + f.NATS + " "
	}
	fmt.Fprint(w, "\nTry in another terminal (Ctrl-C stops the fleet):\n\n")
	if samples {
		fmt.Fprintf(w, "  curl -i http://%s/go/summer-deal\n", f.HTTP[0])
	} else {
		fmt.Fprintf(w, "  curl -i http://%s/go/hello\n", f.HTTP[0])
	}
	fmt.Fprintf(w, "  %s.bin/affctl link create /go/hello https://store.com/hello --wait\n", env)
	fmt.Fprintf(w, "  %s.bin/affctl clicks tail\n\n", env)
}
