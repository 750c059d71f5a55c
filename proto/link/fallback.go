package link

// HasFallback says whether the affiliate says where its links go while it is
// suspended. A nil one does not.
func (a *Affiliate) HasFallback() bool { return a != nil && len(a.fallback) > 0 }
