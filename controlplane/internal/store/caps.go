package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	linkv1 "github.com/affleet/affleet/proto/aff/link/v1"
	"github.com/affleet/affleet/proto/link"
)

// How many clicks of a link with a cap have been leased is kept beside the
// links, a key for each link and period:
//
//	caps/hour/<number>/<link>   of an hour, counted from 1970, in 10 digits
//	caps/day/<number>/<link>    of a day
//	caps/total/<link>           of the link's life
//
// The value is "<revision> <clicks>" in decimal; the revision is the one at
// which the link was created, so that a link that is written anew after it was
// deleted begins at 0.
const (
	capKeys  = root + "caps/"
	capHours = capKeys + "hour/"
	capDays  = capKeys + "day/"
	capTotal = capKeys + "total/"
)

// CapClaim is what a node asks for a link in a period; see feedv1.CapClaim.
type CapClaim struct {
	Link                   string // without "links/"
	Period                 linkv1.CapPeriod
	Number                 int64
	Owed, Returned, Wanted uint64
	Creation               int64 // that Owed and Returned are of; 0: whichever there is
}

// CapGrant answers a CapClaim.
type CapGrant struct {
	Clicks   uint64 // that are leased
	Creation int64  // the revision at which their link was created; 0: there is none
}

// maxCapLinks is how many links one transaction reads with their counters: etcd
// allows 128 operations.
const maxCapLinks = 60

// capDepth is how far a claim's hour or day may be from the present one: clocks
// differ, and what belongs to a period that is just over is still settled.
const capDepth = 1

// LeaseCaps gives for each claim how many clicks are leased. All leases of a
// link and period together, less what was returned, are never more than its cap.
func (s *Store) LeaseCaps(ctx context.Context, claims []CapClaim) ([]CapGrant, error) {
	granted := make([]CapGrant, len(claims))
	places := map[string][]int{} // the claims of each counter
	var keys []string
	for i := range claims {
		key := claims[i].key(s.now())
		if key == "" {
			continue
		}
		if places[key] == nil {
			keys = append(keys, key)
		}
		places[key] = append(places[key], i)
	}
	for len(keys) > 0 {
		part := keys[:min(len(keys), maxCapLinks)]
		keys = keys[len(part):]
		err := errRaced
		for try, begin := 0, time.Now(); errors.Is(err, errRaced) && time.Since(begin) < s.patience; try++ {
			if err = backOff(ctx, try); err == nil {
				err = s.leaseCaps(ctx, claims, part, places, granted)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return granted, nil
}

// key is the claim's counter, empty if there is none for it.
func (c *CapClaim) key(now time.Time) string {
	if _, _, err := link.ParseName(link.Links.Prefix() + c.Link); err != nil {
		return ""
	}
	near := func(seconds int64) bool {
		present := now.Unix() / seconds
		return c.Number >= present-capDepth && c.Number <= present+capDepth
	}
	switch c.Period {
	case linkv1.CapPeriod_CAP_PERIOD_HOUR:
		if near(3600) {
			return fmt.Sprintf("%s%010d/%s", capHours, c.Number, c.Link)
		}
	case linkv1.CapPeriod_CAP_PERIOD_DAY:
		if near(86400) {
			return fmt.Sprintf("%s%010d/%s", capDays, c.Number, c.Link)
		}
	case linkv1.CapPeriod_CAP_PERIOD_TOTAL:
		return capTotal + c.Link
	}
	return ""
}

// leaseCaps answers the claims of some counters in one transaction.
func (s *Store) leaseCaps(ctx context.Context, claims []CapClaim, keys []string, places map[string][]int, granted []CapGrant) error {
	reads := make([]clientv3.Op, 0, 2*len(keys))
	for _, key := range keys {
		name := claims[places[key][0]].Link
		reads = append(reads, clientv3.OpGet(resources+link.Links.Prefix()+name), clientv3.OpGet(key))
	}
	got, err := s.txn(ctx, nil, reads, nil)
	if err != nil {
		return err
	}
	var same []clientv3.Cmp
	var writes []clientv3.Op
	for i, key := range keys {
		record := got.Responses[2*i].GetResponseRange().Kvs
		stored := got.Responses[2*i+1].GetResponseRange().Kvs
		used, creation := readCounter(record, stored)
		was := used
		limit := capLimit(record, claims[places[key][0]].Period)
		for _, at := range places[key] {
			if granted[at] = (CapGrant{Creation: creation}); creation != 0 {
				granted[at].Clicks = claims[at].apply(&used, limit, creation)
			}
		}
		if used != was {
			revision := int64(0)
			if len(stored) > 0 {
				revision = stored[0].ModRevision
			}
			same = append(same, unchangedSince(key, revision))
			writes = append(writes, clientv3.OpPut(key, fmt.Sprintf("%d %d", creation, used)))
		}
	}
	if len(writes) == 0 {
		return nil
	}
	done, err := s.txn(ctx, same, writes, nil)
	if err == nil && !done.Succeeded {
		err = errRaced
	}
	return err
}

// readCounter reads how much of a link's cap is used, and at which revision the
// link was created, 0 if there is no link.
func readCounter(record, stored []*mvccpb.KeyValue) (used uint64, creation int64) {
	if len(record) == 0 {
		return 0, 0
	}
	creation = record[0].CreateRevision
	if len(stored) > 0 {
		revision, count, _ := strings.Cut(string(stored[0].Value), " ")
		if revision == strconv.FormatInt(creation, 10) {
			used, _ = strconv.ParseUint(count, 10, 64) // 0 for what nobody here has written
		}
	}
	return used, creation
}

// capLimit is a stored link's cap, 0 if it has none for that period.
func capLimit(record []*mvccpb.KeyValue, period linkv1.CapPeriod) uint64 {
	if len(record) == 0 {
		return 0
	}
	var r linkv1.Resource
	if err := proto.Unmarshal(recordValue(record[0].Value), &r); err != nil {
		return 0
	}
	limit := r.GetLink().GetCap()
	stored := limit.GetPeriod()
	if stored == linkv1.CapPeriod_CAP_PERIOD_UNSPECIFIED {
		stored = linkv1.CapPeriod_CAP_PERIOD_TOTAL
	}
	if stored != period {
		return 0
	}
	return limit.GetClicks()
}

// apply settles a claim with a counter and gives what is leased: the less there
// is left, the smaller the share, so that no node has what others need. What is
// of a link that was there before, under the same key, is not this one's.
func (c *CapClaim) apply(used *uint64, limit uint64, creation int64) uint64 {
	if c.Creation == 0 || c.Creation == creation {
		*used += min(c.Owed, ^*used)
		*used -= min(c.Returned, *used)
	}
	if *used >= limit {
		return 0
	}
	room := limit - *used
	share := min(c.Wanted, max(1, room/4))
	*used += share
	return share
}

// SweepCaps removes the counters of periods that are over and of links that do
// not exist any more. Where nothing has been leased of the present period, the
// clock may be ahead, and counters of periods stay.
func (s *Store) SweepCaps(ctx context.Context) error {
	for prefix, seconds := range map[string]int64{capHours: 3600, capDays: 86400} {
		present := s.now().Unix() / seconds
		from := func(number int64) string { return fmt.Sprintf("%s%010d/", prefix, number) }
		got, err := s.get(ctx, from(present), clientv3.WithRange(from(present+1)), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		if len(got.Kvs) == 0 {
			continue
		}
		past := from(present - capDepth)
		if _, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(prefix, clientv3.WithRange(past))}, nil); err != nil {
			return err
		}
	}
	for from := capTotal; ; {
		got, err := s.get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(capTotal)), clientv3.WithLimit(maxCapLinks), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		if len(got.Kvs) == 0 {
			return nil
		}
		if err := s.sweepTotals(ctx, got.Kvs); err != nil {
			return err
		}
		from = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
}

// sweepTotals removes those of some counters whose link does not exist.
func (s *Store) sweepTotals(ctx context.Context, counters []*mvccpb.KeyValue) error {
	record := func(kv *mvccpb.KeyValue) string {
		return resources + link.Links.Prefix() + strings.TrimPrefix(string(kv.Key), capTotal)
	}
	reads := make([]clientv3.Op, len(counters))
	for i, kv := range counters {
		reads[i] = clientv3.OpGet(record(kv), clientv3.WithCountOnly())
	}
	got, err := s.txn(ctx, nil, reads, nil)
	if err != nil {
		return err
	}
	for i, kv := range counters {
		if got.Responses[i].GetResponseRange().Count > 0 {
			continue
		}
		// A link that is written anew meanwhile begins at 0 in any case.
		if _, err := s.txn(ctx, []clientv3.Cmp{unchangedSince(string(kv.Key), kv.ModRevision)}, []clientv3.Op{clientv3.OpDelete(string(kv.Key))}, nil); err != nil {
			return err
		}
	}
	return nil
}
