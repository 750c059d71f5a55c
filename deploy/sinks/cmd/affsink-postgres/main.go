// Command affsink-postgres brings clicks into PostgreSQL, each exactly once.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"time"

	"github.com/affleet/affleet/deploy/service"
	"github.com/affleet/affleet/deploy/sinks"
	"github.com/affleet/affleet/deploy/sinks/postgres"
)

func main() {
	source := sinks.Source{Name: "postgres", Every: time.Second, Clicks: 100_000}
	var database string
	var sink *postgres.Sink
	os.Exit(service.Server{
		Name:    "affsink-postgres",
		Summary: "affsink-postgres brings clicks into PostgreSQL, each exactly once.",
		Example: "affsink-postgres --nats nats://10.0.0.3:4222 --database postgres://aff@10.0.0.9/clicks",
		Flags: func(fs *flag.FlagSet) {
			source.Flags(fs)
			fs.StringVar(&database, "database", "postgres://127.0.0.1:5432/clicks", "`URL` of the database; PGPASSWORD and the like are heeded")
		},
		Check: func() (err error) {
			if err := source.Check(); err != nil {
				return err
			}
			sink, err = postgres.New(database, source.Name)
			return err
		},
		Run: func(ctx context.Context, log *slog.Logger) error {
			defer sink.Close(context.WithoutCancel(ctx))
			return source.Run(ctx, log, sink)
		},
	}.Main(os.Args[1:], os.Stdout, os.Stderr))
}
