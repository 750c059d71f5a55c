// Package aside is for work that takes long beside redirects, on a node that may
// have one core only: it lets them go first.
//
// Go's scheduler treats all goroutines alike. With one P, a goroutine that
// computes has it for 10 ms, and one that waits in a system call, say for a
// disk, keeps it until the runtime's monitor has looked twice, which may take
// 20 ms. Redirects wait meanwhile. So what runs in the background computes in
// pieces, with a yield behind each, writes files in pieces, and waits for disks
// with Sync.
//
// A yield belongs to one goroutine. Sync may be called from any.
package aside

// Piece is how many bytes of a file are written at once: the kernel copies them
// within some 10 µs.
const Piece = 64 << 10
