package click

import (
	"encoding/binary"
	"math"
	"testing"
	"unsafe"
)

// A file's removal may be on the disk before a page that was written sooner.
func TestAtLevelFsyncNoClicksAreRemovedBeforeTheirAcknowledgementIsOnTheDisk(t *testing.T) {
	for _, earlier := range []bool{false, true} {
		r := filled(t, Fsync)
		last := r.Last()
		l := r.log
		if earlier {
			dir := killed(t, r.config.Dir)
			r = still(t, func(c *Config) { c.Dir = dir })
			l = r.Earlier()[0]
		}
		l.Acknowledge(last)
		real := syncMemory
		defer func() { syncMemory, step = real, nil }()
		var onDisk uint64
		syncMemory = func(mem []byte) error {
			if &mem[0] == &l.boot.mem[0] {
				onDisk = binary.NativeEndian.Uint64(mem[marksAt+unsafe.Offsetof(marks{}.acknowledged):])
			}
			return real(mem)
		}
		removed := 0
		step = func(name string) {
			if name == "trim: removed" {
				if removed++; onDisk < l.Acknowledged() {
					t.Errorf("earlier boot %t: clicks up to %d are removed, %d are acknowledged on the disk", earlier, l.Acknowledged(), onDisk)
				}
			}
		}
		if _, err := l.trim(0, math.MaxInt, false, func() {}); err != nil || removed == 0 {
			t.Errorf("earlier boot %t: %d segments are removed, %v", earlier, removed, err)
		}
	}
}
