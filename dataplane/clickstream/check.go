package clickstream

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// largestMessage is the size that a node's batch can have, with its headers.
const largestMessage = 257 << 10

// CheckStream says in a line each what about a stream's settings is unsafe, and
// what that can cost. servers is how many NATS servers there are.
func CheckStream(c jetstream.StreamConfig, servers int) (lines []string) {
	note := func(bad bool, line string) {
		if bad {
			lines = append(lines, line)
		}
	}
	note(c.Storage != jetstream.FileStorage, "the stream is in memory: a restart of its server loses every click in it")
	note(c.Discard != jetstream.DiscardNew, "the stream discards old messages when it is full: clicks that no consumer has read are lost without a trace (nats stream edit --discard new)")
	note(c.Retention != jetstream.LimitsPolicy, "the stream deletes what has been acknowledged: a second consumer, and a look back, see holes")
	note(c.NoAck, "the stream does not acknowledge: no click ever leaves the spools of the nodes (nats stream edit --ack)")
	note(c.PersistMode == jetstream.AsyncPersistMode, "the stream acknowledges before it has written: a crash of its server loses clicks")
	note(c.Duplicates < time.Minute, fmt.Sprintf("the stream's duplicate window is %s: under a minute, more clicks are stored twice, which only consumers that drop duplicates notice (nats stream edit --dupe-window 2m)", c.Duplicates))
	note(c.MaxBytes <= 0, "the stream has no limit of bytes: it can fill the server's disk, which stops all of its streams (nats stream edit --max-bytes)")
	note(c.MaxAge > 0 && c.MaxAge < time.Hour, fmt.Sprintf("the stream forgets clicks after %s: a consumer that is down for longer loses them (nats stream edit --max-age)", c.MaxAge))
	note(c.MaxMsgs > 0 && c.Discard != jetstream.DiscardNew || c.MaxMsgsPerSubject > 0, "the stream has a limit of messages: it removes clicks that may not have been read")
	note(c.MaxMsgs > 0 && c.Discard == jetstream.DiscardNew, fmt.Sprintf("the stream takes at most %d messages: with these it is full, however few bytes they are (nats stream edit --max-msgs -1)", c.MaxMsgs))
	note(c.Sealed, "the stream is sealed: it takes no click, for good (make another)")
	note(c.MaxMsgSize > 0 && c.MaxMsgSize < largestMessage, fmt.Sprintf("the stream takes messages of at most %d bytes: publishing costs more than with %d, and a larger click is lost (nats stream edit --max-msg-size)", c.MaxMsgSize, largestMessage))
	note(c.Replicas < 3 && servers >= 3, fmt.Sprintf("the stream has %d replicas though there are %d servers: losing one can lose clicks (nats stream edit --replicas 3)", max(1, c.Replicas), servers))
	note(c.Replicas == 2, "the stream has 2 replicas: it stops when either server does, which 1 or 3 do not")
	covered := false
	for _, s := range c.Subjects {
		head, wild := strings.CutSuffix(s, ">")
		covered = covered || s == Subjects || wild && strings.HasPrefix(prefix, head)
	}
	note(!covered, fmt.Sprintf("the stream does not take all of %s: nodes of other regions or names find no place in it (nats stream edit --subjects)", Subjects))
	return lines
}

// NodesKeep is how long nodes keep clicks that the stream has acknowledged: the
// default of --click-keep. At --click-level memory they keep none.
const NodesKeep = 10 * time.Minute

// CheckSync is CheckStream for how often the servers write to their disks:
// sync_interval of JetStream, and whether each message waits for it. It takes the
// nodes to keep clicks for NodesKeep.
func CheckSync(interval time.Duration, always bool, replicas int) (lines []string) {
	if always || interval <= 0 {
		return nil
	}
	if interval >= NodesKeep {
		return []string{fmt.Sprintf("sync_interval is %s, but nodes keep what is acknowledged for %s by default (--click-keep): a power cut of the servers loses clicks for good (set sync_interval to at most %s)", interval, NodesKeep, NodesKeep/2)}
	}
	if interval > NodesKeep/2 && replicas < 3 {
		return []string{fmt.Sprintf("sync_interval is %s: after a power cut nodes have little of the %s left for which they keep clicks by default (--click-keep), to publish again what the server lost (set it to at most %s)", interval, NodesKeep, NodesKeep/2)}
	}
	return nil
}
