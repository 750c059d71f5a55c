package dataplane

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/affleet/affleet/dataplane/internal/table"
)

const (
	hugePage = 2 << 20
	// A huge page takes its whole size, so it must be the table's almost entirely.
	hugeFrom = hugePage / 10 * 9
	// Making one copies it, which nothing else on the same core should wait for.
	hugePause = 2 * time.Millisecond
)

// useHugePages asks the kernel to keep the table in huge pages where it fills
// them. Each lookup is for another place in it, and the processor remembers the
// places of a few thousand pages only: with small ones, finding out where they
// are took longer than reading them. It is advice, which a kernel before 6.1 or
// one without room does not take.
func useHugePages(ctx context.Context, t *table.Table) { collapse(ctx, t.Memory()) }

// collapse does so with any memory that somebody holds: where pieces of it are, and
// their bytes.
func collapse(ctx context.Context, memory iter.Seq2[uintptr, uintptr]) {
	share := make(map[uintptr]uintptr) // bytes of it, by page
	for at, n := range memory {
		for n > 0 {
			part := min(n, hugePage-at%hugePage)
			share[at/hugePage] += part
			at, n = at+part, n-part
		}
	}
	for _, page := range slices.Sorted(maps.Keys(share)) {
		if share[page] < hugeFrom || ctx.Err() != nil {
			continue
		}
		// Somebody holds the page's memory, and it stays where it is.
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, page*hugePage, hugePage, unix.MADV_COLLAPSE)
		if errors.Is(errno, unix.EINVAL) {
			return
		}
		time.Sleep(hugePause)
	}
}
