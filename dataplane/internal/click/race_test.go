//go:build race

package click

const raceDetector = true
