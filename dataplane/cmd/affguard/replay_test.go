package main

import "testing"

func TestURLOfNATSThatCannotBeReadIsRefusedWithoutItsSecret(t *testing.T) {
	r := replaying{nats: "nats://ada:s3cret%zz@a:4222"}
	err := r.check()
	if want := `nats: "nats://xxxxx@a:4222" is no URL of NATS`; err == nil || err.Error() != want {
		t.Errorf("the error is %v, want %s", err, want)
	}
	file := replaying{input: "clicks.bin", nats: "nats://127.0.0.1:4222"}
	if err := file.check(); err != nil {
		t.Error(err)
	}
}
