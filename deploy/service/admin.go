package service

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// NewRegistry makes a registry that has the process's own metrics.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Part is a server that is ready to run, and what its admin address shows.
type Part struct {
	Admin   string       // host:port
	Healthy func() error // nil when it can do its work, and else why not, in one line
	Metrics prometheus.Gatherer
	Pages   []Page // that it has beside /livez, /readyz and /metrics
	Run     func(context.Context) error
	Close   func() error // for a part that is not run
}

// Page is what an admin address shows at a pattern of http.ServeMux.
type Page struct {
	Pattern string // "GET /state"
	Handler http.HandlerFunc
}

// Serve runs a part and its admin address until ctx ends or one of them fails.
// The admin address answers until the part has ended.
func Serve(ctx context.Context, p Part) error {
	admin, err := ListenAdmin(p)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	return admin.Serve(ctx, p.Run)
}

// Admin is the address where a server says how it fares: /livez, /readyz,
// /metrics, and a node also /explain. It is not for the public.
type Admin struct {
	ln  net.Listener
	srv *http.Server
}

// ListenAdmin opens the address of a part.
func ListenAdmin(p Part) (*Admin, error) {
	ln, err := net.Listen("tcp", p.Admin)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := p.Healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	// To compress them takes some ms of a core that may answer redirects.
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.Metrics, promhttp.HandlerOpts{DisableCompression: true}))
	for _, page := range p.Pages {
		mux.Handle(page.Pattern, page.Handler)
	}
	return &Admin{ln: ln, srv: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}}, nil
}

// Addr is the address that was opened.
func (a *Admin) Addr() net.Addr { return a.ln.Addr() }

// Serve runs a part, and answers for it until it has ended.
func (a *Admin) Serve(ctx context.Context, run func(context.Context) error) error {
	both, ctx := errgroup.WithContext(ctx)
	both.Go(func() error {
		defer func() { _ = a.srv.Close() }() // nobody is left who needs the answer
		return run(ctx)
	})
	both.Go(func() error {
		if err := a.srv.Serve(a.ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return both.Wait()
}
