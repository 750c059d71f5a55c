package click

// step, where a test sets it, is called behind each step of what has to be done in its
// order, and may end the process there. None of these is a step of a single click.
var step func(name string)

func stepped(name string) {
	if step != nil {
		step(name)
	}
}
