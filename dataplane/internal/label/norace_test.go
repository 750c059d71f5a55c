//go:build !race

package label

const raceDetector = false
