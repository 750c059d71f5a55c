// Package feed is the node's end of the distribution path: it keeps the live
// table at the head of the control plane's state, and on disk for the day when
// no control plane answers.
//
// The data's way through it:
//
//	Client.Run      boots from the last-known-good file, then connects to one
//	                control plane after the other
//	session         one stream: says what the node holds, answers each frame
//	applier         one frame: decode, build beside, verify, swap one pointer
//	keeper          writes what is live to the file, off the apply path
//
// What comes from the network is checked and never trusted: a frame that does
// not verify leaves the live table as it is. The live version never goes back,
// and never to another epoch than the one that is held.
//
// Concurrency: Run is called once and owns every goroutine. Ready may be used
// from any goroutine. The live table may be read by anybody; only this package
// stores it.
package feed
