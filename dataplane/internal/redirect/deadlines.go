package redirect

import (
	"container/heap"
	"math"
)

// deadlines are the read deadlines of a loop's connections, as a heap.
type deadlines []*conn

// never is behind all deadlines.
const never = math.MaxInt64

// set takes up a connection's deadline, or a new one.
func (d *deadlines) set(c *conn) {
	if c.place < 0 {
		heap.Push(d, c)
	} else {
		heap.Fix(d, c.place)
	}
}

// drop forgets a connection.
func (d *deadlines) drop(c *conn) {
	if c.place >= 0 {
		heap.Remove(d, c.place)
	}
}

// next is the first deadline, in ns of the clock.
func (d deadlines) next() int64 {
	if len(d) == 0 {
		return never
	}
	return d[0].armed
}

// Len, Less, Swap, Push and Pop are a heap.Interface.
func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].armed < d[j].armed }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

func (d *deadlines) Push(c any) {
	c.(*conn).place = len(*d)
	*d = append(*d, c.(*conn))
}

func (d *deadlines) Pop() any {
	last := len(*d) - 1
	c := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	c.place = -1
	return c
}
