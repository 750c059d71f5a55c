// Package e2e runs the whole system as it is run in production: etcd,
// nats-server, control planes and nodes as separate processes, written to with
// affctl. It has nothing but tests.
package e2e
