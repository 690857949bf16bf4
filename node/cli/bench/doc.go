// Package bench puts a load on the native HTTP API and says how long the answers took.
//
// It is an open loop: requests are due at fixed moments, whatever became of those before, and every latency counts from the
// moment at which the request was due. So a server that stands still for a while is seen as its users see it: a closed loop
// would ask it one question per connection in that time, and hardly notice ("coordinated omission", Gil Tene, "How NOT to
// Measure Latency", 2013). Without a rate it is a closed loop, which finds the maximum and says little about latency.
package bench
