/* armdisk.h: a disk with one arm, as a model: one request at a time, and each pays for the way to its place.
 *
 * The device is the whole disk: `size` bytes on tracks of TRACK bytes, turning once in `turn_us`. A request waits for
 *   the arm      0 within a track, else seek_us[0] + (seek_us[1] - seek_us[0]) * sqrt(distance / size)
 *   the platter  until the place comes by under the head: place and time decide, nothing is drawn by lot
 *   the bytes    a turn per track
 * Of what is queued the request that can begin first is served next, as a disk with native command queueing does it.
 * There is no write cache: a write that is answered is on the platter. All times are real ones (the caller sleeps).
 */
#ifndef ARMDISK_H
#define ARMDISK_H

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define ARM_QUEUE 64
#define TRACK (1024.0 * 1024.0)	/* 120 MiB/s at 7200 turns a minute */

struct arm_request {
	double at;
	int used;
};

static struct {
	double size, turn_us, seek_us[2];	/* size 0: no arm, no waiting */
	pthread_mutex_t lock;
	pthread_cond_t moved;
	struct arm_request queue[ARM_QUEUE];
	int turn;				/* whose place is served; -1: the arm rests */
	double head, time_us;			/* byte under the head, and since when */
} arm = { .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER, .turn = -1 };

static double arm_now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Microseconds until the place comes by under the arm. */
static double arm_way_us(double at)
{
	double seek = 0, angle, place = fmod(at, TRACK) / TRACK;

	if (floor(at / TRACK) != floor(arm.head / TRACK))
		seek = arm.seek_us[0] + (arm.seek_us[1] - arm.seek_us[0]) * sqrt(fabs(at - arm.head) / arm.size);
	angle = fmod((arm.time_us + seek) / arm.turn_us, 1.0);
	return seek + fmod(place - angle + 1.0, 1.0) * arm.turn_us;
}

/* The queued request that can begin first; -1: there is none. */
static int arm_choose(void)
{
	double least = 0;
	int i, best = -1;

	for (i = 0; i < ARM_QUEUE; i++)
		if (arm.queue[i].used && (best < 0 || arm_way_us(arm.queue[i].at) < least)) {
			best = i;
			least = arm_way_us(arm.queue[i].at);
		}
	return best;
}

static void arm_sleep_until(double us)
{
	struct timespec t = { .tv_sec = (time_t)(us / 1e6), .tv_nsec = (long)(fmod(us, 1e6) * 1e3) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0))
		continue;
}

/* Returns when the request has passed under the head. No more than ARM_QUEUE threads. */
static void arm_pass(uint64_t offset, uint64_t size)
{
	int mine = 0;

	if (arm.size == 0)
		return;
	pthread_mutex_lock(&arm.lock);
	while (arm.queue[mine].used)
		mine++;
	arm.queue[mine].at = (double)offset;
	arm.queue[mine].used = 1;
	if (arm.turn < 0) {
		arm.turn = mine;
		arm.time_us = arm_now_us();
	}
	while (arm.turn != mine)
		pthread_cond_wait(&arm.moved, &arm.lock);
	arm.time_us += arm_way_us((double)offset) + (double)size / TRACK * arm.turn_us;
	arm.head = (double)(offset + size);
	pthread_mutex_unlock(&arm.lock);
	arm_sleep_until(arm.time_us);
	pthread_mutex_lock(&arm.lock);
	arm.queue[mine].used = 0;
	arm.turn = arm_choose();
	pthread_cond_broadcast(&arm.moved);
	pthread_mutex_unlock(&arm.lock);
}

#endif
