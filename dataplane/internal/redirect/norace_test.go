//go:build !race

package redirect

const allowedAllocs = 0
