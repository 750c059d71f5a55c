package publish

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
)

// StreamLimits are used when the stream has to be created. An existing stream
// is never changed.
type StreamLimits struct {
	MaxBytes   int64         // default: 10 GiB, or half of it as often as the server needs
	MaxAge     time.Duration // default: none
	Replicas   int           // default: 3 where the servers are three or more, else 1
	Duplicates time.Duration // window of the server's own de-duplication. Default: 2 min
}

const (
	minStreamBytes = 64 << 20

	codeNoStorage   jetstream.ErrorCode = 10047 // insufficient storage resources available
	codeNoResources jetstream.ErrorCode = 10023 // insufficient resources
	codeNoPeers     jetstream.ErrorCode = 10005 // no suitable peers for placement
	codeNoCluster   jetstream.ErrorCode = 10074 // replicas > 1 not supported in non-clustered mode
)

// ensureStream finds the stream or creates it, and gives what an operator
// should know about it, one line each.
func ensureStream(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, limits StreamLimits) setup {
	stream, err := js.Stream(ctx, clickstream.StreamName)
	if err == nil {
		config := stream.CachedInfo().Config
		return setup{config: config, last: stream.CachedInfo().State.LastSeq, warnings: clickstream.CheckStream(config, len(nc.Servers()))}
	}
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return setup{err: fmt.Errorf("look for stream %s: %w", clickstream.StreamName, err)}
	}
	asked := wantedStream(nc, limits)
	want := asked
	for {
		stream, err = js.CreateStream(ctx, want)
		var refused *jetstream.APIError
		switch {
		case err == nil:
			s := setup{config: stream.CachedInfo().Config, created: true}
			if want.MaxBytes < asked.MaxBytes {
				s.warnings = append(s.warnings, fmt.Sprintf("the server has no room for a stream of %d bytes, so it may hold %d: raise max_file_store of JetStream, then the stream's limit (nats stream edit --max-bytes)", asked.MaxBytes, want.MaxBytes))
			}
			if want.Replicas < asked.Replicas {
				s.warnings = append(s.warnings, fmt.Sprintf("the servers could not place %d replicas, so the stream has 1: losing one server can lose clicks (nats stream edit --replicas)", asked.Replicas))
			}
			return s
		case errors.Is(err, jetstream.ErrStreamNameAlreadyInUse):
			return ensureStream(ctx, nc, js, limits) // another node was sooner
		case !errors.As(err, &refused):
			return setup{err: fmt.Errorf("create stream: %w", err)}
		case (refused.ErrorCode == codeNoStorage || refused.ErrorCode == codeNoResources) && want.MaxBytes/2 >= minStreamBytes:
			want.MaxBytes /= 2
		case (refused.ErrorCode == codeNoPeers || refused.ErrorCode == codeNoCluster) && want.Replicas > 1 && limits.Replicas == 0:
			want.Replicas = 1
		default:
			return setup{err: fmt.Errorf("create stream: %w", err)}
		}
	}
}

// wantedStream is the stream as a node creates it.
func wantedStream(nc *nats.Conn, limits StreamLimits) jetstream.StreamConfig {
	want := jetstream.StreamConfig{
		Name:        clickstream.StreamName,
		Description: "Clicks of Affleet: proto/aff/click/v1/README.md",
		Subjects:    []string{clickstream.Subjects},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		Duplicates:  limits.Duplicates,
		MaxBytes:    limits.MaxBytes,
		MaxAge:      limits.MaxAge,
		Replicas:    limits.Replicas,
		AllowDirect: true,
	}
	if want.Duplicates == 0 {
		want.Duplicates = 2 * time.Minute
	}
	if want.MaxBytes == 0 {
		want.MaxBytes = 10 << 30
	}
	if want.Replicas == 0 {
		want.Replicas = 1
		if nc.ConnectedClusterName() != "" && len(nc.Servers()) >= 3 {
			want.Replicas = 3
		}
	}
	if want.MaxAge > 0 {
		want.Duplicates = min(want.Duplicates, want.MaxAge) // the server insists
	}
	return want
}
