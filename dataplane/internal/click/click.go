// Package click records what the node answered: one click for every redirect,
// kept in a bounded spool until the package publish has brought it to
// JetStream and JetStream has acknowledged it.
//
// # How a click is kept
//
// A spool is a row of segments of equal size. At level "process" a segment is
// a file that is mapped into memory and shared with the kernel, so that a
// click is in the kernel's hands when Record returns, without a system call:
// killing the process loses nothing. At level "fsync" what was recorded is
// brought to the disk as well, every few milliseconds, and only then published.
// At level "memory" a segment is plain memory.
//
// Record takes its place in the current segment with one atomic addition,
// which yields both an offset and an index, and with the index the click's
// sequence. It copies the click to that place and stores the record's head
// last. The head holds the length and a checksum; a head of zero is a click
// that is still being written. There is no lock on this path. A goroutine
// (started by Open and ended by Close) prepares
// segments ahead and removes old ones, so that neither ever happens in Record.
//
// After a crash, Open reads what an earlier boot has left. A place that was
// taken and never filled belongs to a request that was never answered; it is
// passed over and the sequences close up. Anything that is damaged is counted.
//
// # When not to use it
//
// At level "process" the file is memory of the kernel, not of the disk: a power
// cut can lose the last seconds, or more than that of what is not published. And the kernel may make a writer wait when
// it touches a page that is being written to a slow disk at that moment; put
// the folder on a tmpfs where that matters more than a restart of the machine.
//
// # Concurrency
//
// Record and the methods of Recorder are safe for any number of goroutines.
// A Log is too; a Cursor belongs to one goroutine.
package click

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/affleet/affleet/proto/link"
)

// Event is one answered redirect as the redirect path knows it. All slices
// are borrowed until Record returns.
type Event struct {
	Time     int64  // µs since 1970
	Epoch    uint64 // with Revision: the version that decided
	Revision int64

	// The link's key in two parts; both empty when no link decided.
	LinkDomain, LinkPath         []byte
	Affiliate, Campaign, Variant []byte
	Rule                         uint32 // 1 for the first rule; 0 when none decided

	Destination []byte // the Location that was sent
	Status      uint16 // of HTTP
	Head        bool   // the method was HEAD
	Outcome     uint8  // a number of clickv1.Outcome

	Address    netip.Addr // the client's, in full; the recorder applies the privacy policy
	UserAgent  []byte     // at most MaxUserAgent bytes are kept
	Referrer   []byte     // at most MaxReferrer bytes are kept
	Languages  []byte     // at most MaxLanguages bytes are kept
	Host, Path []byte     // as asked for; at most MaxHost and MaxPath bytes are kept

	// Sub-ids and other parameters, and labels with their reasons: as many of
	// the first as take MaxParameters and MaxLabels bytes, each of them whole.
	Parameters []Pair
	Labels     []Pair

	Country [2]byte // ISO 3166-1 in capitals; zero when unknown
	ASN     uint32  // autonomous system; 0 when unknown

	// The client sent "Sec-GPC: 1": its address is truncated whatever the policy.
	GPC bool
}

// Pair is a parameter or a label: both parts are borrowed like the rest.
type Pair = link.Param // of a label: the label and its reason

// Longer fields from a client are cut to these many bytes. The operator's own
// fields are kept whole.
const (
	MaxUserAgent = 1024
	MaxReferrer  = 2048
	MaxLanguages = 256
	MaxHost      = 255
	MaxPath      = 2048

	MaxParameters = 8192 // names, values and 4 bytes for each
	MaxLabels     = 2048 // likewise
)

// Level says what a recorded click survives.
type Level string

// The levels.
const (
	Memory  Level = "memory"  // nothing but a clean stop
	Process Level = "process" // the death of the process
	Fsync   Level = "fsync"   // a power cut too, but for the last Config.Sync
)

// DefaultSync is how much a power cut may take at level fsync.
const DefaultSync = 10 * time.Millisecond

// AddressForm is what the privacy policy makes of a client's address: a number
// of clickv1.AddressForm.
type AddressForm uint8

// The forms.
const (
	AddressFull      AddressForm = 1 // all 4 or 16 bytes
	AddressTruncated AddressForm = 2 // zero behind the first 24 (IPv4) or 48 (IPv6) bits
	AddressHashed    AddressForm = 3 // 8 bytes of a keyed hash, the key anew each day; see Config.HashKey
)

// ParseAddressForm reads the setting: "full", "truncated" or "hashed".
func ParseAddressForm(s string) (AddressForm, error) {
	switch s {
	case "full":
		return AddressFull, nil
	case "truncated":
		return AddressTruncated, nil
	case "hashed":
		return AddressHashed, nil
	}
	return 0, fmt.Errorf("address form %q: there are full, truncated and hashed", s)
}

// DropReason is why a click was not recorded: a number of clickv1.DropReason.
type DropReason uint8

// The reasons.
const (
	SpoolFull  DropReason = 1 // the spool had reached its limit
	TooLarge   DropReason = 2 // larger than MaxRecord
	Corrupt    DropReason = 3 // could not be read back
	LostMemory DropReason = 4 // only in memory when the process ended, or came after the end

	reasons = 8 // room for more, in the boot file too
)

var reasonNames = map[DropReason]string{
	SpoolFull: "spool_full", TooLarge: "too_large", Corrupt: "corrupt", LostMemory: "lost_memory",
}

// String is the reason as a metric's label: "spool_full".
func (d DropReason) String() string { return reasonNames[d] }

// Identity is what a boot's clicks are published under.
type Identity struct {
	Node, Region string // at most 255 bytes each
	Boot         uint64 // random, anew at each start of the process
	Address      AddressForm
}

// Config is the recorder's. The zero values of the optional fields work.
type Config struct {
	Dir          string        // folder of the spool; it is created. Required but at level memory
	Level        Level         // default: process
	Sync         time.Duration // at level fsync: how often clicks are brought to the disk. Default: DefaultSync
	MaxBytes     int64         // limit of the spool, everything included. Default: 1 GiB
	SegmentBytes int64         // size of a segment, 256 KiB to 256 MiB. Default: 2 MiB, less where MaxBytes is small
	Retention    time.Duration // how long what was sent is kept, as far as MaxBytes allows. Default: 10 min; negative, and at level memory: not at all
	Node, Region string        // Node is required
	Boot         uint64        // required
	Address      AddressForm   // default: truncated
	HashKey      []byte        // the secret of ReadHashKey, for AddressHashed. Default: keys are random, anew with each start
	Omit         Fields        // what is not recorded. Default: all is
	Registerer   prometheus.Registerer
}

const (
	minSegment = 256 << 10
	maxSegment = 256 << 20
	spareCount = 2 // segments that are prepared ahead
)

func (c *Config) setDefaults() error {
	if c.Level == "" {
		c.Level = Process
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = 1 << 30
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = min(2<<20, max(minSegment, c.MaxBytes/(spareCount+2)&^(pageSize-1)))
	}
	if c.Retention == 0 {
		c.Retention = 10 * time.Minute
	}
	if c.Address == 0 {
		c.Address = AddressTruncated
	}
	if c.Sync == 0 {
		c.Sync = DefaultSync
	}
	switch {
	case c.Level != Memory && c.Level != Process && c.Level != Fsync:
		return fmt.Errorf("level %q: there are %s, %s and %s", c.Level, Memory, Process, Fsync)
	case c.Level != Memory && c.Dir == "":
		return fmt.Errorf("level %s needs a folder", c.Level)
	case c.Sync < 0:
		return fmt.Errorf("a window of %v: it must be above 0", c.Sync)
	case c.Node == "" || len(c.Node) > 255 || len(c.Region) > 255:
		return errors.New("the node's name must have 1 to 255 bytes, the region's at most 255")
	case c.Boot == 0:
		return errors.New("the boot must not be 0")
	case c.Address > AddressHashed:
		return fmt.Errorf("address form %d: there are full, truncated and hashed", c.Address)
	case c.HashKey != nil && (c.Address != AddressHashed || len(c.HashKey) < MinHashKey || len(c.HashKey) > MaxHashKey):
		return fmt.Errorf("a hash key of %d bytes: it must have %d to %d, and is for hashed addresses only", len(c.HashKey), MinHashKey, MaxHashKey)
	case c.SegmentBytes < minSegment || c.SegmentBytes > maxSegment || c.SegmentBytes%pageSize != 0:
		return fmt.Errorf("segments of %d bytes: they must have 256 KiB to 256 MiB, in whole pages of 4 KiB", c.SegmentBytes)
	case c.MaxBytes < (spareCount+2)*c.SegmentBytes:
		return fmt.Errorf("a limit of %d bytes: it must be at least %d, four segments", c.MaxBytes, (spareCount+2)*c.SegmentBytes)
	}
	return nil
}

// Ledger is a boot's account. It closes: Answered = Recorded + all of Dropped.
type Ledger struct {
	Answered uint64
	Recorded uint64
	Dropped  [reasons]uint64 // by DropReason
}

// Lost is the sum of Dropped.
func (l *Ledger) Lost() uint64 {
	var n uint64
	for _, d := range l.Dropped {
		n += d
	}
	return n
}
