package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/affleet/affleet/proto/link"
)

// Epochs are the fleet's epoch and those that it has had before, or that an
// operator has made it adopt.
type Epochs struct {
	Current uint64
	Past    []uint64
}

// Epoch gives the fleet's epoch, and makes one up if there is none yet.
func (s *Store) Epoch(ctx context.Context) (uint64, error) {
	epochs, err := s.Epochs(ctx)
	return epochs.Current, err
}

// Epochs gives the fleet's epochs, and makes one up if there is none yet.
func (s *Store) Epochs(ctx context.Context) (Epochs, error) {
	fresh := rand.Uint64() | 1
	read := []clientv3.Op{clientv3.OpGet(epochKey), clientv3.OpGet(pastEpochs, clientv3.WithPrefix())}
	got, err := s.txn(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(epochKey), ">", 0)}, read, nil)
	if err == nil && !got.Succeeded {
		// Whoever is faster: the answer has the epoch that won.
		if _, err = s.txn(ctx,
			[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(epochKey), "=", 0)},
			[]clientv3.Op{clientv3.OpPut(epochKey, formatEpoch(fresh))}, nil); err == nil {
			got, err = s.txn(ctx, nil, read, nil)
		}
	}
	if err != nil {
		return Epochs{}, err
	}
	kvs := got.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return Epochs{}, &link.Error{Kind: link.Unavailable, Message: "the epoch was deleted from etcd this moment", Hint: "restore " + epochKey + " in etcd"}
	}
	var e Epochs
	if e.Current, err = parseEpoch(epochKey, string(kvs[0].Value)); err != nil {
		return Epochs{}, err
	}
	for _, kv := range got.Responses[1].GetResponseRange().Kvs {
		past, err := parseEpoch(string(kv.Key), string(kv.Key[len(pastEpochs):]))
		if err != nil {
			return Epochs{}, err
		}
		e.Past = append(e.Past, past)
	}
	return e, nil
}

// NewEpoch ends the epoch current and begins another one, at the revision that
// it gives; adopt are further epochs that count as past from then on.
func (s *Store) NewEpoch(ctx context.Context, current uint64, adopt []uint64) (epoch uint64, revision int64, err error) {
	epoch = rand.Uint64() | 1
	then := []clientv3.Op{clientv3.OpPut(epochKey, formatEpoch(epoch)), clientv3.OpPut(pastEpochs+formatEpoch(current), "")}
	for _, past := range adopt {
		if past != current && past != 0 {
			then = append(then, clientv3.OpPut(pastEpochs+formatEpoch(past), ""))
		}
	}
	got, err := s.txn(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.Value(epochKey), "=", formatEpoch(current))},
		then, []clientv3.Op{clientv3.OpGet(epochKey)})
	if err != nil {
		return 0, 0, err
	}
	if !got.Succeeded {
		now := "none"
		if kvs := got.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			now = string(kvs[0].Value)
		}
		return 0, 0, &link.Error{
			Kind: link.Aborted, Message: fmt.Sprintf("the epoch in etcd is %s, and not %016x", now, current),
			Hint: "somebody else may have begun a new one: see affctl fleet status",
		}
	}
	return epoch, got.Header.Revision, nil
}

func formatEpoch(epoch uint64) string { return fmt.Sprintf("%016x", epoch) }

func parseEpoch(key, text string) (uint64, error) {
	epoch, err := strconv.ParseUint(text, 16, 64)
	if err != nil || epoch == 0 || len(text) != 16 {
		return 0, &link.Error{
			Kind: link.FailedPrecondition, Message: fmt.Sprintf("the epoch in etcd is %q, and not 16 hexadecimal digits", text),
			Hint: "restore " + key + " in etcd",
		}
	}
	return epoch, nil
}

// Release says which revisions pass the guards although they remove much. The
// zero value releases nothing.
type Release struct {
	Epoch uint64
	// An operator has released all revisions up to this one.
	UpTo int64
	// The last write that was made with AllowShrink: it alone is released.
	Write int64
}

// Merge gives what either of two releases of one epoch lets pass.
func (r Release) Merge(other Release) Release {
	return Release{Epoch: max(r.Epoch, other.Epoch), UpTo: max(r.UpTo, other.UpTo), Write: max(r.Write, other.Write)}
}

// Release releases all revisions up to one. A release never takes an earlier
// one back.
func (s *Store) Release(ctx context.Context, epoch uint64, upTo int64) error {
	for {
		got, err := s.get(ctx, releaseKey)
		if err != nil {
			return err
		}
		held := int64(0)
		if len(got.Kvs) > 0 {
			held = got.Kvs[0].ModRevision
			if was := parseRelease(got.Kvs[0]); was.Epoch == epoch && was.UpTo >= upTo {
				return nil
			}
		}
		done, err := s.txn(ctx, []clientv3.Cmp{unchangedSince(releaseKey, held)},
			[]clientv3.Op{clientv3.OpPut(releaseKey, fmt.Sprintf("%s %d", formatEpoch(epoch), upTo))}, nil)
		if err != nil || done.Succeeded {
			return err
		}
	}
}

// Released reads what is released in an epoch.
func (s *Store) Released(ctx context.Context, epoch uint64) (Release, error) {
	return s.ReleasedAt(ctx, epoch, 0)
}

// ReleasedAt reads what was released in an epoch at a revision; 0 is the current one.
func (s *Store) ReleasedAt(ctx context.Context, epoch uint64, revision int64) (Release, error) {
	got, err := s.get(ctx, releaseKey, clientv3.WithPrefix(), clientv3.WithRev(revision))
	if err != nil {
		return Release{}, err
	}
	var r Release
	for _, kv := range got.Kvs {
		if one := parseRelease(kv); one.Epoch == epoch {
			r = r.Merge(one)
		}
	}
	return r, nil
}

// allowShrink is the operation by which a transaction releases itself: the
// revision is that of the key.
func allowShrink(epoch uint64) clientv3.Op {
	return clientv3.OpPut(releaseWrite, formatEpoch(epoch))
}

// parseRelease reads one of the two keys of releases. What cannot be read
// releases nothing.
func parseRelease(kv *mvccpb.KeyValue) Release {
	first, rest, _ := strings.Cut(string(kv.Value), " ")
	epoch, err := parseEpoch(string(kv.Key), first)
	if err != nil {
		return Release{}
	}
	if string(kv.Key) == releaseWrite {
		return Release{Epoch: epoch, Write: kv.ModRevision}
	}
	upTo, err := strconv.ParseInt(rest, 10, 64)
	if err != nil || string(kv.Key) != releaseKey {
		return Release{}
	}
	return Release{Epoch: epoch, UpTo: upTo}
}

// Hold notes that a revision is held back, for replicas that start later. An
// earlier one that is not released stays.
func (s *Store) Hold(ctx context.Context, epoch uint64, revision int64) error {
	for {
		got, err := s.get(ctx, heldKey)
		if err != nil {
			return err
		}
		read := int64(0)
		if len(got.Kvs) > 0 {
			read = got.Kvs[0].ModRevision
		}
		held, err := s.Held(ctx, epoch)
		if err != nil || held != 0 && held <= revision {
			return err
		}
		done, err := s.txn(ctx, []clientv3.Cmp{unchangedSince(heldKey, read)},
			[]clientv3.Op{clientv3.OpPut(heldKey, fmt.Sprintf("%s %d", formatEpoch(epoch), revision))}, nil)
		if err != nil || done.Succeeded {
			return err
		}
	}
}

// Held gives the first revision of an epoch that a replica holds back and
// nobody has released; 0: none.
func (s *Store) Held(ctx context.Context, epoch uint64) (int64, error) {
	got, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpGet(heldKey), clientv3.OpGet(releaseKey)}, nil)
	if err != nil {
		return 0, err
	}
	kvs := got.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return 0, nil
	}
	first, rest, _ := strings.Cut(string(kvs[0].Value), " ")
	of, err := parseEpoch(heldKey, first)
	revision, err2 := strconv.ParseInt(rest, 10, 64)
	if err != nil || err2 != nil || of != epoch {
		return 0, nil //nolint:nilerr // what cannot be read holds nothing back
	}
	if kvs := got.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		if r := parseRelease(kvs[0]); r.Epoch == epoch && r.UpTo >= revision {
			return 0, nil
		}
	}
	return revision, nil
}

// Touch makes a revision that changes no resource.
func (s *Store) Touch(ctx context.Context) error {
	_, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpPut(touchKey, "")}, nil)
	return err
}
