// Package feed is the node's end of the distribution path: it keeps the live
// table at the head of the control plane's state, and on disk for the day when
// no control plane answers.
//
// The data's way through it:
//
//	Client.Run      boots from the last-known-good file and its journal, and
//	                connects to one control plane after the other; a node that
//	                has no file, and gets no state from any of them, takes that
//	                of another place (bootstrap)
//	session         one stream: says what the node holds, answers each frame
//	applier         one frame: decode, build beside, verify, guard, journal,
//	                swap one pointer
//	candidate       a snapshot in place of a state: live once the file has it
//	overlay         what was taken down ahead of the version that holds it
//	keeper          writes what is live to the file, off the apply path
//	batches, replay read the file and the journal when a node starts
//
// What comes from the network is checked and never trusted: a frame that does
// not verify leaves the live table as it is. So does one that the guard holds
// back, until it is released. An entry that does not compile, say because it is
// of a later release, or that is larger than a setting allows, is held and not
// served, and spoils no others.
//
// The live version never goes back within an epoch, and never to an epoch that
// was left. Another epoch, which an operator makes after a restore, is taken as
// a snapshot. A node that is killed comes back with the version that it has
// served: deltas are in the journal before they are live, and a snapshot that takes the
// place of a state is in the file (candidate). Where the disk does not take it, or not
// in time, it is live without, and so is the first state of a node. One that loses power
// comes back with the version of the file. The one exception is a crash loop: a state
// that has ended the process again and again is left for the one before it, and so is
// a take-down for its version (tripwire).
//
// # Files
//
// In the folder are the state (state.aff) and the one before it (state.aff.prev),
// the deltas since (state.aff.log), what was taken down ahead of its version, for as
// long as one of the two states lacks it (state.aff.downs, and state.aff.downs.bad
// where it has ended the process or cannot be read), a note of what is being taken in
// (state.aff.try) and the epochs that were left (state.aff.epochs). Each is checked
// when it is read, and none has to be there.
//
// # Costs
//
// With a million links, on 2 cores: a snapshot is taken in within 0.5 s, the file
// is read and verified in 0.5 s and written in 0.3 s, which a snapshot in place of a
// state waits for. A delta of one link takes 30 µs, and the note and the journal some
// µs on top.
//
// Concurrency: Run is called once and owns every goroutine. Ready and ServeState
// may be used from any goroutine. The live table may be read by anybody; only
// this package stores it.
package feed
