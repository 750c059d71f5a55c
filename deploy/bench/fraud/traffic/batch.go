package traffic

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/affleet/affleet/deploy/bench/linkset"
	clickv1 "github.com/affleet/affleet/proto/aff/click/v1"
	"github.com/affleet/affleet/proto/link"
)

// Batching says how clicks become batches. Nodes cut one each 50 ms; in traffic
// of a few clicks a second that would be a batch for each click.
type Batching struct {
	Span     int64 // of event time, in µs; default: 1 s
	Most     int   // clicks; default: 400
	Truncate bool  // addresses to /24 and /48
}

// Batches gives the messages that nodes make of clicks, each when its node would
// have sent it. A message is good until the next one.
func (t *Traffic) Batches(clicks iter.Seq[*Click], how Batching) iter.Seq2[*clickv1.Batch, []byte] {
	if how.Span == 0 {
		how.Span = second
	}
	if how.Most == 0 {
		how.Most = 400
	}
	return func(yield func(*clickv1.Batch, []byte) bool) {
		var nodes [Nodes]*batcher
		for i := range nodes {
			nodes[i] = newBatcher(t, i, how)
		}
		send := func(b *batcher) bool {
			message, ok := b.end()
			return !ok || yield(&b.batch, message)
		}
		for c := range clicks {
			for _, b := range nodes {
				if b.due(c.Time) && !send(b) {
					return
				}
			}
			b := nodes[c.Node]
			b.add(c)
			if b.n == how.Most && !send(b) {
				return
			}
		}
		for _, b := range nodes {
			if !send(b) {
				return
			}
		}
	}
}

// AppendDelimited appends a message with its length before it.
func AppendDelimited(b, message []byte) []byte {
	return append(protowire.AppendVarint(b, uint64(len(message))), message...)
}

// batcher makes one node's.
type batcher struct {
	t        *Traffic
	how      Batching
	batch    clickv1.Batch
	clicks   []*clickv1.Click // reused
	n        int
	from     int64
	sequence uint64
	index    map[string]uint32
	out      []byte
}

func newBatcher(t *Traffic, i int, how Batching) *batcher {
	form := clickv1.AddressForm_ADDRESS_FORM_FULL
	if how.Truncate {
		form = clickv1.AddressForm_ADDRESS_FORM_TRUNCATED
	}
	b := &batcher{t: t, how: how, sequence: 1, index: make(map[string]uint32)}
	b.batch.Node, b.batch.Region, b.batch.Boot = NodeName(i), fmt.Sprintf("r%d", i%2), t.Config.Seed<<8+uint64(i)+1
	b.batch.Epoch, b.batch.BaseRevision, b.batch.AddressForm = 1, 1, form
	return b
}

// NodeName is the name of a node.
func NodeName(i int) string { return fmt.Sprintf("node-%d", i+1) }

func (b *batcher) due(at int64) bool { return b.n > 0 && at-b.from >= b.how.Span }

func (b *batcher) at(s string) uint32 {
	if s == "" {
		return 0
	}
	i, ok := b.index[s]
	if !ok {
		i = uint32(len(b.batch.Strings))
		b.index[s] = i
		b.batch.Strings = append(b.batch.Strings, []byte(s))
	}
	return i
}

func (b *batcher) add(c *Click) {
	if b.n == 0 {
		b.from = c.Time
		b.batch.BaseTimeUs, b.batch.FirstSequence = c.Time, b.sequence
		b.batch.Strings = append(b.batch.Strings[:0], nil)
		clear(b.index)
	}
	if b.n == len(b.clicks) {
		b.clicks = append(b.clicks, new(clickv1.Click))
	}
	m := b.clicks[b.n]
	b.n++
	b.sequence++
	shop := b.t.Shop
	l := &shop.Links[c.Link]
	m.TimeUs = c.Time - b.from
	m.Link, m.Destination = b.at(linkset.Domain+l.Path), b.at(l.Destination)
	m.Affiliate, m.Host = b.at(shop.Affiliates[c.Affiliate].ID), b.at(linkset.Domain)
	m.UserAgent, m.Referrer, m.Languages = b.at(c.Agent), b.at(c.Referrer), b.at(c.Languages)
	m.Country, m.Asn = b.at(c.Country), c.ASN
	m.Method = clickv1.Method_METHOD_UNSPECIFIED
	if c.head {
		m.Method = clickv1.Method_METHOD_HEAD
	}
	m.Address = append(m.Address[:0], b.address(c.Address)...)
	m.Labels = m.Labels[:0]
	for v := link.Label(0); c.Labels>>v != 0; v++ {
		if c.Labels&(1<<v) != 0 {
			m.Labels = append(m.Labels, b.at(v.String()), b.at("generator/1"))
		}
	}
}

func (b *batcher) address(a netip.Addr) []byte {
	if b.how.Truncate {
		bits := 24
		if a.Is6() {
			bits = 48
		}
		p, _ := a.Prefix(bits) // there are as many
		a = p.Addr()
	}
	return a.AsSlice()
}

// end gives the message, and whether there is one.
func (b *batcher) end() ([]byte, bool) {
	if b.n == 0 {
		return nil, false
	}
	b.batch.Clicks = b.clicks[:b.n]
	recorded := b.sequence - 1
	b.batch.Ledger = &clickv1.Ledger{Answered: recorded, Recorded: recorded}
	var err error
	b.out, err = proto.MarshalOptions{}.MarshalAppend(b.out[:0], &b.batch)
	if err != nil {
		panic("BUG: " + err.Error()) // bytes and numbers can always be written
	}
	b.n = 0
	return b.out, true
}

// CutDelimited takes the first message of AppendDelimited's off b.
func CutDelimited(b []byte) (message, rest []byte, err error) {
	n, size := protowire.ConsumeVarint(b)
	if size < 0 || n > uint64(len(b)-size) {
		return nil, nil, errors.New("cut off message")
	}
	return b[size : size+int(n)], b[size+int(n):], nil
}
