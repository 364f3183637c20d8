// Threads of a Java program, with those of its collector and its compilers: a pool, a queue, a barrier, and garbage. What
// is printed does not depend on who did what.
import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.zip.CRC32;

public class Crowd {
    static long chain(int length) {
        List<long[]> links = new ArrayList<>();
        for (int i = 0; i < length; i++)
            links.add(new long[] {i, i * 3L});
        CRC32 sum = new CRC32();
        for (long[] link : links)
            sum.update((int) (link[0] ^ link[1]));
        return sum.getValue();
    }

    public static void main(String[] arguments) throws Exception {
        var pool = Executors.newFixedThreadPool(4);
        List<Future<Long>> sums = new ArrayList<>();
        for (int job = 1; job <= 32; job++) {
            int length = job * 4000;
            sums.add(pool.submit(() -> chain(length)));
        }
        for (int job = 0; job < sums.size(); job++)
            System.out.println(job + " " + sums.get(job).get());
        pool.shutdown();

        var numbers = new ArrayBlockingQueue<Integer>(8);
        var counted = new TreeMap<Integer, Integer>();
        List<Thread> takers = new ArrayList<>();
        for (int i = 0; i < 3; i++)
            takers.add(new Thread(() -> {
                try {
                    for (int taken = numbers.take(); taken >= 0; taken = numbers.take())
                        synchronized (counted) {
                            counted.merge(taken % 7, taken, Integer::sum);
                        }
                } catch (InterruptedException error) {
                    throw new IllegalStateException(error);
                }
            }));
        takers.forEach(Thread::start);
        for (int number = 0; number < 4000; number++)
            numbers.put(number);
        for (int i = 0; i < takers.size(); i++)
            numbers.put(-1);
        for (Thread taker : takers)
            taker.join();
        System.out.println(counted);

        var rounds = new AtomicInteger();
        var barrier = new CyclicBarrier(4, rounds::incrementAndGet);
        List<Thread> meeting = new ArrayList<>();
        for (int i = 0; i < 4; i++)
            meeting.add(new Thread(() -> {
                try {
                    for (int round = 0; round < 200; round++)
                        barrier.await();
                } catch (Exception error) {
                    throw new IllegalStateException(error);
                }
            }));
        meeting.forEach(Thread::start);
        for (Thread each : meeting)
            each.join();
        System.out.println(rounds);
    }
}
