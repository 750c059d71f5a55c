//go:build !unix

package replay

import "time"

// usage is not known.
func usage() (cpu time.Duration, rss, most int64) { return 0, 0, 0 }
