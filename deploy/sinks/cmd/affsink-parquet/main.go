// Command affsink-parquet writes clicks into Parquet files by hour, each
// exactly once.
package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"time"

	"github.com/affleet/affleet/deploy/service"
	"github.com/affleet/affleet/deploy/sinks"
	"github.com/affleet/affleet/deploy/sinks/parquet"
)

func main() {
	source := sinks.Source{Name: "parquet", Every: time.Minute, Clicks: 1 << 20}
	var folder string
	var grace time.Duration
	os.Exit(service.Server{
		Name:    "affsink-parquet",
		Summary: "affsink-parquet writes clicks into Parquet files by hour, each exactly once.",
		Example: "affsink-parquet --nats nats://10.0.0.3:4222 --folder /srv/clicks",
		Flags: func(fs *flag.FlagSet) {
			source.Flags(fs)
			fs.StringVar(&folder, "folder", "clicks", "`folder` for the files; this process is its only writer")
			fs.DurationVar(&grace, "grace", 5*time.Minute, "`time` after the end of an hour until its file is made")
		},
		Check: func() error {
			if err := source.Check(); err != nil {
				return err
			}
			_, err := parquet.New(folder, grace, nil)
			return err
		},
		Run: func(ctx context.Context, log *slog.Logger) error {
			sink, err := parquet.New(folder, grace, log)
			if err != nil {
				return err
			}
			defer sink.Close()
			return source.Run(ctx, log, sink)
		},
	}.Main(os.Args[1:], os.Stdout, os.Stderr))
}
