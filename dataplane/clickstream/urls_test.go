package clickstream

import "testing"

func TestURLsOfNATSAreShownWithoutWhatLetsAProgramIn(t *testing.T) {
	for urls, want := range map[string]string{
		"nats://a:4222, b:4222":              "nats://a:4222, b:4222",
		"nats://ada:secret@a:4222":           "nats://xxxxx@a:4222",
		"nats://token@a:4222,tls://x@b:4222": "nats://xxxxx@a:4222,tls://xxxxx@b:4222",
		"token@a:4222, ada:secret@b":         "xxxxx@a:4222, xxxxx@b",
		"nats://sec%ret@a:4222":              "nats://xxxxx@a:4222",
	} {
		if got := RedactURLs(urls); got != want {
			t.Errorf("%s became %s", urls, got)
		}
	}
}

func TestURLOfNATSThatCannotBeReadIsNamedWithoutItsSecret(t *testing.T) {
	for urls, shown := range map[string]string{
		"nats://secret%zz@a:4222": `"nats://xxxxx@a:4222"`,
		"b, ada:secret%zz@a:4222": `"xxxxx@a:4222"`,
		"nats://ada:secret/@a":    `"nats://xxxxx@a"`,
		"b,nats://":               `"nats://"`,
	} {
		err := ValidateURLs(urls)
		if want := shown + " is no URL of NATS"; err == nil || err.Error() != want {
			t.Errorf("of %s, the error is %v, want %s", urls, err, want)
		}
	}
	if err := ValidateURLs("a, nats://b:4222,token@c,"); err != nil {
		t.Error(err)
	}
}
