package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/affleet/affleet/dataplane/clickstream"
	"github.com/affleet/affleet/dataplane/internal/guard"
)

// The NATS object store of checkpoints.
const (
	stateBucket = "AFF_GUARD"
	stateObject = "checkpoint"
	maxMarks    = 64 << 20
)

// state keeps checkpoints: the engine, and the place in the stream of clicks that
// it is of. It is the Store of clickstream.Consume, of which most calls of Save do
// nothing: what is acknowledged does not matter to a consumer that begins at its
// checkpoint.
//
// Without a store for them (NATS has no room) the guard goes on; who leads next
// then reads the past again.
type state struct {
	leader *leader
	every  time.Duration
	store  jetstream.ObjectStore
	begin  clickstream.State // of the checkpoint that was read
	saved  time.Time
	told   bool
	ended  context.Context // of the leader: behind its end comes a last call of Save
}

// open reads the last checkpoint.
func (s *state) open(ctx context.Context) error {
	s.ended = ctx
	log := s.leader.log
	err := s.read(ctx)
	switch {
	case err == nil:
		s.saved = time.Now()
		log.Info("going on from a checkpoint", "stream_sequence", s.begin.Next, "stored", s.begin.Stored)
		return nil
	case errors.Is(err, jetstream.ErrBucketNotFound), errors.Is(err, jetstream.ErrObjectNotFound):
		log.Info("there is no checkpoint: the past is read", "from", time.Now().Add(-s.leader.p.cfg.Rebuild))
	case errors.Is(err, guard.ErrOtherCheckpoint), errors.Is(err, guard.ErrDamagedCheckpoint):
		log.Warn("the checkpoint cannot be used: the past is read", "error", err)
	default:
		return fmt.Errorf("read the checkpoint: %w", err)
	}
	s.begin = clickstream.State{}
	s.leader.engine, err = s.leader.newEngine() // what was half read is thrown away
	return err
}

func (s *state) read(ctx context.Context) (err error) {
	if s.store, err = s.leader.js.ObjectStore(ctx, stateBucket); err != nil {
		return err
	}
	object, err := s.store.Get(ctx, stateObject)
	if err != nil {
		return err
	}
	defer object.Close()
	var size uint32
	if err := binary.Read(object, binary.LittleEndian, &size); err != nil {
		return fmt.Errorf("%w: %w", guard.ErrDamagedCheckpoint, err)
	}
	if size > maxMarks {
		return fmt.Errorf("%w: its marks have %d bytes", guard.ErrDamagedCheckpoint, size)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(object, text); err != nil {
		return fmt.Errorf("%w: %w", guard.ErrDamagedCheckpoint, err)
	}
	if err := json.Unmarshal(text, &s.begin); err != nil {
		return fmt.Errorf("%w: %w", guard.ErrDamagedCheckpoint, err)
	}
	return s.leader.engine.Load(object)
}

// Load gives the place of the checkpoint.
func (s *state) Load(context.Context) (clickstream.State, error) { return s.begin, nil }

// Save writes a checkpoint when one is due: soon after the start when there is
// none, and always at the end.
func (s *state) Save(ctx context.Context, at clickstream.State) error {
	if !s.leader.lease.valid() {
		return errLease
	}
	if time.Since(s.saved) < s.every && s.ended.Err() == nil {
		return nil
	}
	began := time.Now()
	err := s.write(ctx, at)
	s.saved = time.Now()
	m := s.leader.p.metrics
	if err != nil {
		m.errors.WithLabelValues("checkpoint").Inc()
		if !s.told {
			s.leader.log.Warn("the guard has no checkpoint: who leads next reads the past again", "error", err)
		}
		s.told = true
		return nil
	}
	s.told = false
	s.leader.reports.trim()
	m.checkpoint.Set(float64(s.saved.Unix()))
	m.checkpointTook.Set(time.Since(began).Seconds())
	return nil
}

func (s *state) write(ctx context.Context, at clickstream.State) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if s.store == nil {
		s.store, err = s.leader.js.CreateOrUpdateObjectStore(ctx, jetstream.ObjectStoreConfig{
			Bucket: stateBucket, Description: "What Affleet's fraud detector knows", Storage: jetstream.FileStorage, Replicas: replicas(ctx, s.leader.js),
		})
		if err != nil {
			return err
		}
	}
	text, err := json.Marshal(at)
	if err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint32(nil, uint32(len(text)))
	reader, writer := io.Pipe()
	done := make(chan struct{})
	go func() { // the engine stands still until Save returns
		defer close(done)
		writer.CloseWithError(s.leader.engine.Save(writer))
	}()
	_, err = s.store.Put(ctx, jetstream.ObjectMeta{Name: stateObject}, io.MultiReader(bytes.NewReader(append(head, text...)), reader))
	reader.CloseWithError(errors.New("nobody reads")) // an error of Put lets Save end
	<-done
	return err
}
