// Goroutines on several threads: channels, a wait group, a mutex, timers, and memory for the collector to find. What is
// printed does not depend on who did what.
package main

import (
	"fmt"
	"hash/fnv"
	"runtime"
	"sort"
	"sync"
	"time"
)

const workers, jobs = 8, 64

// chain makes a list that the collector has to follow, and sums it up.
func chain(length int) uint64 {
	type link struct {
		next  *link
		value uint64
	}
	var first *link
	for i := 0; i < length; i++ {
		first = &link{first, uint64(i)}
	}
	sum := uint64(0)
	for each := first; each != nil; each = each.next {
		sum += each.value
	}
	return sum
}

func main() {
	runtime.GOMAXPROCS(4)
	work, results := make(chan int), make(chan string, 4)
	var group sync.WaitGroup
	var lock sync.Mutex
	sums := map[int]uint64{}
	for i := 0; i < workers; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for job := range work {
				hash := fnv.New64a()
				for n := 0; n < 20000; n++ {
					fmt.Fprintf(hash, "%d-%d", job, n)
				}
				lock.Lock()
				sums[job] = chain(2000 * (job + 1))
				lock.Unlock()
				results <- fmt.Sprintf("%02d %016x", job, hash.Sum64())
			}
		}()
	}
	go func() {
		for job := 0; job < jobs; job++ {
			work <- job
		}
		close(work)
		group.Wait()
		close(results)
	}()
	lines := []string{}
	for line := range results {
		lines = append(lines, line)
	}
	sort.Strings(lines)
	for job, line := range lines {
		fmt.Println(line, sums[job])
	}
	select {
	case <-time.After(5 * time.Millisecond):
		fmt.Println("in time")
	case <-make(chan int):
	}
}
