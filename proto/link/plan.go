package link

// Plan is how a link decides where to send a request: the runtime form of its
// query policy, rules and splits. Links that say the same can share one.
type Plan struct {
	bytes []byte
}
