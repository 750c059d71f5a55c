package proc

import (
	"fmt"
	"os"
)

// latencyFile takes the longest time, in µs, that a core may need to wake up, and
// holds all cores to it for as long as it is open (pm_qos_interface.txt of the
// kernel's documentation).
const latencyFile = "/dev/cpu_dma_latency"

// Halting says in a report what cores do that have nothing to do.
func Halting(awake bool) string {
	if awake {
		return "Cores that idle do not halt (0 in " + latencyFile + "): to wake a virtual one takes its hypervisor up to 80 µs, which the sender of an answer pays."
	}
	return "Cores that idle may halt, and who sends an answer pays for waking the other one."
}

// StayAwake keeps the cores from halting when they idle, until it is released.
// To wake a virtual core that has halted takes its hypervisor up to 80 µs, which
// the sender of each answer would pay and which says nothing about a server. It
// needs root.
func StayAwake() (release func(), err error) {
	f, err := os.OpenFile(latencyFile, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keep the cores from halting: %w", err)
	}
	if _, err := f.Write(make([]byte, 4)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("keep the cores from halting: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
