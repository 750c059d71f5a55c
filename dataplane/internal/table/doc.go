// Package table holds what a node serves: an immutable Table of links and of
// what goes with them, a Builder that makes one from nothing or from another
// one, and Live, the one atomic pointer behind which it is swapped.
//
// It knows keys and stored bytes, and asks proto/link what they mean. It is not
// a general map: its keys are resource names, its values are checked when they
// are put, and few-of-a-kind resources (domains, affiliates, policies) are meant
// to be some thousands, not millions; blocks some hundred thousand.
//
// A Table never changes and may be used by any number of goroutines, also while
// a Builder that began from it is at work; what its methods give belongs to it
// and stays valid for as long as it is held. A Builder belongs to one goroutine.
//
// # Layout
//
// The links are divided among shards by the upper bits of a seeded hash of
// domain and path, link.HashKey. A list of 2^n pointers says which shard, and a
// shard that grows beyond 2048 links (or half a megabyte) is split in two,
// which doubles the list only when the shard has one place in it. So growth
// costs one shard at a time, never the whole. Shards are not joined again: one
// that is empty takes some hundred bytes. From two million links on, shards get
// larger instead, up to 8192 links, so that ten million have some 2048 of them.
//
// Paths that some policy takes for the same, in another case or with a slash
// more, have the same hash, and are told apart where they are compared. So the
// policy of a domain may change without a look at its links. Links with one
// hash are gone through one by one: at most 16 of them where paths have four
// letters and all combinations are taken, hardly ever two elsewhere. A shard
// that is full of such links stays whole.
//
// A shard is two slices without pointers. The arena holds the entries one after
// the other: 2 bytes of length, the 28 bytes of link.Compiled, the stored value;
// the key is in the value. The index is a hash table with open addressing of
// uint32: the offset of an entry, and in the bits that the offset does not need
// (13 of them, usually) a tag from the hash. Finding a link is one cache miss in
// the index and one in the arena, which are all that a large table adds.
//
// A prefix link is found by the hash of what stands before its "/*". A path has
// one such stem per slash, the longest of which wins.
//
// Everything else is in registries, small hash tables of pointers with pages
// that are copied when they change. The registry of hosts has the domain and
// the number of links of each host, so that a host without links costs no look
// at the shards; and at which depths it has prefix links, so that a path costs
// one look for each of those, at most 33, however many slashes it has. A link
// refers to its affiliate by id, which a registry finds without an allocation:
// no reference has to be kept valid when affiliates come and go, and a link
// without one pays nothing.
//
// Blocks are found by what they match: user agents and affiliates in registries,
// prefixes of addresses in a trie (github.com/gaissmai/bart) whose edits copy the
// path that they change. An address that is in none costs one look; one that is,
// one more for each prefix that it is in. A block that has ended stays until it
// is deleted: whether it counts is asked with each request.
//
// An entry that does not compile is held in a registry of its own: it is counted
// and hashed like the others, and no Lookup finds it. A table can be shown
// instead of the one that was verified, with some links less: it is an edit of
// that one, so that a Lookup costs the same.
//
// # Versions
//
// Edit shares everything. An entry that is put is appended to the arena behind
// what older tables can see, if there is room, and only if the builder is the
// first that began from its table: each table gives that right away once.
// Otherwise the arena is copied, with 1/32 of room and without what is dead. A
// new link gets a slot of the index that was free: older tables pass over it, for
// its entry is behind their end of the arena. Who replaces or deletes a link, or
// is not the first, copies the shard's index (about 10 kB) once. So a table
// takes part of its memory from its predecessor, and neither can tell.
//
// The set hash and the counts are kept with every put and delete, from the
// stored bytes of what goes and what comes.
//
// # Costs
//
// Measured with the benchmarks of this package on a Xeon (Sapphire Rapids, 2
// cores, virtual, 4 KiB pages) with Go 1.26; the links have a host of 14 bytes,
// a path of 20, a destination of 45 and one of 1000 affiliates:
//
//	                                           1M links     10M links, shards of 2048
//	resident memory per link, all included     138 B        138 B
//	  at the peak of a full build              266 B        248 B
//	  after a million links were replaced      150 B
//	resident memory of the process             149 MB       1.39 GB
//	pointers (1000 affiliates: 4000)           7,000        29,000
//	a garbage collection                       0.5 ms       3.6 ms
//	full build from stored bytes, one core     0.70 s       12 s
//	  share of it that PutAll does in parallel 92%
//	delta of one link, new, Edit to Build      12 µs        38 µs
//	delta of one link that copies its arena    42 µs        89 µs
//	delta of 1000 links                        3.0 ms       8.7 ms
//	Lookup, link in the cache                  66 ns        66 ns
//	  random links, nothing in the cache       320 ns       700 ns
//	  no link                                  57 ns        125 ns
//	  host without links                       7 ns         7 ns
//	  case and slash ignored, in the cache     64 ns        64 ns
//	  prefix link, in the cache                75 ns        75 ns
//	  33 prefix links, path of 8000 slashes    2.4 µs       2.4 µs
//
// Finding the affiliate takes 6 ns of a Lookup with one affiliate, 15 ns with
// 1000, 23 ns with 10,000. A change to one of 10,000 affiliates takes 6 µs.
//
// The garbage of edits that replace or delete is what they copy, about 20 kB for
// one link of a million and up to 600 kB of ten million. With Go's default pace a heap may double
// before that is collected; since a collection costs so little here, a node
// keeps to its memory with a lower GC percentage, such as 20, and with
// debug.FreeOSMemory after a full build.
//
// The second column is from when shards of ten million links, too, had at most 2048.
// With up to 8192, in turns with those, on an AMD EPYC (2 cores, virtual):
//
//	                                           10M, up to 2048  up to 8192
//	pointers                                   29,000           10,000
//	a garbage collection                       6.2 - 6.8 ms     2.0 - 2.7 ms
//	resident memory per link, all included     142 B            140 B
//	  at the peak of a full build              257 B            160 B
//	  after a million links were replaced      147 B            141 B
//	delta of one link, new, Edit to Build      54 µs            15 µs
//	delta of one link that copies its arena    159 µs           473 µs
//	delta of 1000 links, new                   2.7 ms           3.0 ms
//	delta of 1000 links, replaced              33 ms            47 ms
//
// The list of shards that each edit copies is shorter, and an arena or an index that
// one copies is longer.
package table
