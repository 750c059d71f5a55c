// Package aside is for work that takes long beside redirects, on a node that may
// have one core only: it lets them go first.
//
// Redirects have threads of their own (redirect's loops), and so has what runs
// beside them, but of one core they all have a share. So what runs in the
// background computes in pieces, with a yield behind each, and writes files in
// pieces. What need not wait for anything, a loop that has the only core does itself:
// see redirect's Beside.
//
// A yield belongs to one goroutine.
package aside

// Piece is how many bytes of a file are written at once: the kernel copies them
// within some 10 µs.
const Piece = 64 << 10
