package publish

// step, where a test sets it, is called behind each step of what is done with a batch
// that is acknowledged, and may end the process there.
var step func(name string)

func stepped(name string) {
	if step != nil {
		step(name)
	}
}
