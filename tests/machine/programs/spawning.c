/* Makes and joins threads, one after the other, and two at a time. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static void *nothing(void *argument)
{
    return argument;
}

int main(void)
{
    for (int i = 0; i < 200; i++) {
        pthread_t threads[2];
        for (int k = 0; k < 2; k++) {
            int error = pthread_create(&threads[k], NULL, nothing, NULL);
            if (error) return printf("thread %d: error %d\n", i, error), 1;
        }
        for (int k = 0; k < 2; k++) pthread_join(threads[k], NULL);
    }
    puts("all of them");
    return 0;
}
