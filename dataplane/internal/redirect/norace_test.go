//go:build !race

package redirect

const raceDetector = false
