// Package visitor finds out what is known about who sends a request: where its
// address is, which browser it says that it is, and whether that is a known
// bot. The node decides with it and affctl explains with it.
//
// What it says comes from files that an operator provides (MaxMind databases, a
// list of bots), which are read again when they are replaced, and from the
// request's own headers. Whatever is not known is the empty string or 0; nothing
// here is an error of a request.
//
// # Words
//
//	country   ISO 3166-1 alpha-2, in capitals: "DE"
//	region    ISO 3166-2 without its country: "BY"
//	city      the English name: "Munich"
//	device    mobile, tablet, desktop, tv or bot
//	os        android, ios, windows, macos, linux, chromeos or openbsd
//	browser   chrome, safari, firefox, edge, opera, opera-mini, samsung, vivaldi,
//	          yandex, android, ie, falkon or nintendo
//	language  a tag in lower case: "de-at"
//
// # Costs
//
// Every lookup is answered from a bounded cache without lock and without
// allocation, or computed and put there. Nothing is computed before it is asked
// for.
//
// # Concurrency
//
// A Sources may be used from any number of goroutines. Watch is run once.
package visitor
