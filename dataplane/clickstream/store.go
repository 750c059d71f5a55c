package clickstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// State is what a consumer has to remember to go on exactly where it was: the
// place in the stream, and which clicks have been handled.
type State struct {
	// Stream is when the stream was created: a new one counts anew.
	Stream time.Time `json:"stream"`
	// Next is the sequence of the next message of the stream. 0: none was read.
	Next uint64 `json:"next"`
	// Stored is when the stream took the last message that was handled, or the
	// last one before Now.
	Stored time.Time `json:"stored"`
	// Begin is when the stream took the first message that was handled, or could
	// have been since Now: nothing from before is read when the stream has lost its end.
	Begin time.Time `json:"begin,omitzero"`
	Marks []Mark    `json:"marks"`
}

// Store keeps the state of one consumer. Its methods are called from one
// goroutine.
//
// Save is called when clicks have been handled, every Options.SaveEvery or so,
// and the messages are acknowledged after it returned nil. A consumer that begins
// from now on calls it before the first click, too, and a durable one before it goes on
// after a disconnection, or whatever else another that takes over may have caused. A
// store that writes the state together with what the handler has collected, in one
// transaction, makes the hand-over exact. Its error ends Consume.
type Store interface {
	// Load gives what Save got last; the zero State when there was none.
	Load(ctx context.Context) (State, error)
	Save(ctx context.Context, state State) error
}

// ErrTakenOver ends a consumer when another one goes on under its name.
var ErrTakenOver = errors.New("another consumer has taken over")

// memory keeps the state for the life of Consume only.
type memory struct{}

func (memory) Load(context.Context) (State, error) { return State{}, nil }
func (memory) Save(context.Context, State) error   { return nil }

// MarksBucket is the NATS KV bucket in which durable consumers keep their
// state, each under its name.
const MarksBucket = "AFF_MARKS"

// kvStore keeps the state in a NATS KV bucket. While NATS is away it waits.
type kvStore struct {
	js       jetstream.JetStream
	key      string
	log      *slog.Logger
	kv       jetstream.KeyValue
	owner    string
	revision uint64
}

// NewKVStore keeps the state of a consumer in the bucket MarksBucket, under its
// name. The last one that loads it owns it: Save of an earlier one fails with
// ErrTakenOver. It is what a durable consumer has by default.
func NewKVStore(js jetstream.JetStream, name string, log *slog.Logger) Store {
	return &kvStore{js: js, key: name, log: log, owner: rand.Text()}
}

// kvValue is what the bucket holds, as JSON, compressed when that is large.
type kvValue struct {
	Owner string `json:"owner"`
	State
}

func (s *kvStore) Load(ctx context.Context) (state State, err error) {
	err = s.patiently(ctx, func(ctx context.Context) error {
		state, err = s.takeOver(ctx)
		return err
	})
	return state, err
}

func (s *kvStore) takeOver(ctx context.Context) (State, error) {
	if err := s.open(ctx); err != nil {
		return State{}, err
	}
	entry, value, err := s.get(ctx)
	if err != nil {
		return State{}, err
	}
	text, err := value.with(s.owner).encode()
	if err != nil {
		return State{}, err
	}
	if entry == nil {
		s.revision, err = s.kv.Create(ctx, s.key, text)
	} else {
		s.revision, err = s.kv.Update(ctx, s.key, text, entry.Revision())
	}
	return value.State, err // somebody else was sooner: once more
}

// open finds the bucket or makes it.
func (s *kvStore) open(ctx context.Context) (err error) {
	s.kv, err = s.js.KeyValue(ctx, MarksBucket)
	if !errors.Is(err, jetstream.ErrBucketNotFound) {
		return err
	}
	replicas := 1
	if stream, err := s.js.Stream(ctx, StreamName); err == nil {
		replicas = max(1, stream.CachedInfo().Config.Replicas)
	}
	s.kv, err = s.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: MarksBucket, Description: "Where consumers of Affleet's clicks are", History: 1, Storage: jetstream.FileStorage, Replicas: replicas,
	})
	return err
}

// get reads the entry; without one it is nil.
func (s *kvStore) get(ctx context.Context) (jetstream.KeyValueEntry, kvValue, error) {
	entry, err := s.kv.Get(ctx, s.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, kvValue{}, nil
	}
	if err != nil {
		return nil, kvValue{}, err
	}
	value, err := decodeKV(entry.Value())
	if err != nil {
		return nil, value, &permanentError{fmt.Errorf("key %s of bucket %s is none of ours: %w", s.key, MarksBucket, err)}
	}
	return entry, value, nil
}

func (s *kvStore) Save(ctx context.Context, state State) error {
	text, err := kvValue{s.owner, state}.encode()
	if err != nil {
		return err
	}
	return s.patiently(ctx, func(ctx context.Context) error {
		err := s.update(ctx, text)
		if !errors.Is(err, jetstream.ErrKeyExists) && !isWrongRevision(err) {
			return err
		}
		// Either nobody heard the answer to a write of our own, or it is not ours any
		// more.
		entry, value, err := s.get(ctx)
		switch {
		case err != nil:
			return err
		case entry == nil || value.Owner != s.owner:
			return &permanentError{fmt.Errorf("keep marks of %s: %w", s.key, ErrTakenOver)}
		}
		s.revision = entry.Revision()
		return s.update(ctx, text)
	})
}

// update writes what the key holds when its revision is the one we know.
func (s *kvStore) update(ctx context.Context, text []byte) error {
	revision, err := s.kv.Update(ctx, s.key, text, s.revision)
	switch {
	case err == nil:
		s.revision = revision
	case errors.Is(err, nats.ErrMaxPayload):
		return &permanentError{fmt.Errorf("the marks are larger than NATS takes (%d bytes): raise max_payload, or keep them in a Store of your own: %w", len(text), err)}
	}
	return err
}

func isWrongRevision(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence
}

// permanentError is what waiting does not mend.
type permanentError struct{ error }

func (e *permanentError) Unwrap() error { return e.error }

// patiently repeats what fails because NATS is away.
func (s *kvStore) patiently(ctx context.Context, try func(context.Context) error) error {
	pause := 50 * time.Millisecond
	for first := true; ; first = false {
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := try(once)
		cancel()
		var permanent *permanentError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &permanent):
			return permanent.error
		case errors.Is(err, nats.ErrConnectionClosed):
			return err
		case first:
			s.log.Warn("the marks of a consumer of clicks cannot be kept: waiting for NATS", "consumer", s.key, "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

func (v kvValue) with(owner string) kvValue {
	v.Owner = owner
	return v
}

// compressFrom is the length of text from which it is compressed: below it
// stays readable with "nats kv get".
const compressFrom = 64 << 10

func (v kvValue) encode() ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil || len(text) < compressFrom {
		return text, err
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

func decodeKV(text []byte) (v kvValue, err error) {
	if bytes.HasPrefix(text, []byte{0x1f, 0x8b}) {
		r, err := gzip.NewReader(bytes.NewReader(text))
		if err != nil {
			return v, err
		}
		if text, err = io.ReadAll(io.LimitReader(r, 1<<30)); err != nil {
			return v, err
		}
	}
	err = json.Unmarshal(text, &v)
	return v, err
}
