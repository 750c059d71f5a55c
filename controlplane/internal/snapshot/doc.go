// Package snapshot turns the changes of the store into what streams send: a
// shared log of deltas, and snapshots for nodes that the log cannot serve.
//
// The data's way through it:
//
//	Source (epoch, read of everything, watch)
//	  -> Log.Run, the one writer: state by key, set hash, one record per revision
//	  -> View, immutable, published with one atomic pointer
//	  -> Log.Next, called by each stream with its Cursor: the shared bytes of
//	     one revision, a delta of several, or a snapshot
//
// What a Guard does not let pass is held back: the records are in the log behind
// View.Head, which stays before them, until an operator releases them (kept in
// etcd, so that every replica learns of it) or their writer has allowed it.
// What takes links down, and what is written about blocks and policies, goes
// ahead of all that as a TakeDown. An audit compares
// the state with the source now and then, and has it read anew when they
// differ.
//
// A record is encoded once, when it is written; all streams send the same
// bytes. A stream is nothing but a Cursor: the writer knows no streams, waits
// for none, and a slow one costs only the coalescing of what it missed.
//
// Not for looking resources up: the admin side reads etcd.
//
// Concurrency: Run is called once. Everything else may be called from any
// goroutine at any time. Byte slices that a Frame holds are shared and must not
// be changed.
package snapshot
