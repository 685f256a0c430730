// SPDX-License-Identifier: GPL-2.0
/* One fault per load, by name: what the splat detector's golden logs are made with. */
#include <linux/module.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/spinlock.h>
#include <linux/rcupdate.h>
#include <linux/list.h>
#include <linux/refcount.h>
#include <linux/workqueue.h>
#include <linux/kthread.h>
#include <linux/delay.h>
#include <linux/slab.h>
#include <linux/timer.h>
#include <linux/irqflags.h>

static char *what = "warn";
module_param(what, charp, 0);

static DEFINE_MUTEX(provoke_a);
static DEFINE_MUTEX(provoke_b);
static DEFINE_SPINLOCK(provoke_spin);
static DEFINE_SPINLOCK(provoke_irq);
static DEFINE_SPINLOCK(provoke_plain);
static LIST_HEAD(provoke_list);
struct node { struct list_head list; };

static noinline void provoke_ab(void) { mutex_lock(&provoke_a); mutex_lock(&provoke_b); mutex_unlock(&provoke_b); mutex_unlock(&provoke_a); }
static noinline void provoke_ba(void) { mutex_lock(&provoke_b); mutex_lock(&provoke_a); mutex_unlock(&provoke_a); mutex_unlock(&provoke_b); }
static struct mutex provoke_two[2];
static noinline void provoke_recursive(void)
{
	int i;
	for (i = 0; i < 2; i++) mutex_init(&provoke_two[i]);
	mutex_lock(&provoke_two[0]); mutex_lock(&provoke_two[1]);
	mutex_unlock(&provoke_two[1]); mutex_unlock(&provoke_two[0]);
}
static void provoke_tick(struct timer_list *t) { spin_lock(&provoke_spin); spin_unlock(&provoke_spin); }
static DEFINE_TIMER(provoke_timer, provoke_tick);
static noinline void provoke_inconsistent(void)
{
	mod_timer(&provoke_timer, jiffies + 1); msleep(50);
	spin_lock(&provoke_spin); spin_unlock(&provoke_spin);
}
static noinline void provoke_order(void)
{
	mod_timer(&provoke_timer, jiffies + 1); msleep(50);
	spin_lock(&provoke_plain); spin_unlock(&provoke_plain);
	spin_lock_bh(&provoke_spin); spin_lock(&provoke_plain);
	spin_unlock(&provoke_plain); spin_unlock_bh(&provoke_spin);
}
static noinline void provoke_inversion(void)
{
	spin_lock_bh(&provoke_spin); spin_lock(&provoke_plain);
	spin_unlock(&provoke_plain); spin_unlock_bh(&provoke_spin);
	spin_lock(&provoke_plain); spin_unlock(&provoke_plain);
	mod_timer(&provoke_timer, jiffies + 1); msleep(50);
}
static noinline void provoke_balance(void) { mutex_lock(&provoke_a); mutex_unlock(&provoke_a); lock_release(&provoke_a.dep_map, _THIS_IP_); }
static noinline void provoke_held(void) { mutex_lock(&provoke_a); }
static void *provoke_ptr;
static noinline void provoke_rcu(void) { void *p = rcu_dereference(provoke_ptr); pr_info("%p\n", p); }
static noinline void provoke_atomic(void) { spin_lock(&provoke_spin); msleep(1); spin_unlock(&provoke_spin); }
static noinline void provoke_sched(void) { preempt_disable(); schedule(); preempt_enable(); }
static noinline void provoke_warn(void) { WARN(1, "provoked %d\n", 42); }
static noinline void provoke_bug(void) { BUG_ON(provoke_ptr == NULL); }
static noinline void provoke_null(void) { *(volatile int *)(unsigned long)(provoke_ptr ? 1 : 8) = 1; }
static noinline void provoke_gpf(void) { *(volatile int *)0xdead000000000100UL = 1; }
static noinline void provoke_paging(void) { *(volatile int *)0xffffc8ff00000010UL = 1; }
static noinline void provoke_list_fault(void)
{
	struct node *n = kzalloc(sizeof(*n), GFP_KERNEL);
	list_add(&n->list, &provoke_list); list_del(&n->list); list_del(&n->list);
}
static refcount_t provoke_ref = REFCOUNT_INIT(1);
static noinline void provoke_refcount(void) { refcount_dec(&provoke_ref); refcount_inc(&provoke_ref); }
static noinline void provoke_spin_forever(void) { unsigned long end = jiffies + 25 * HZ; preempt_disable(); while (time_before(jiffies, end)) cpu_relax(); preempt_enable(); }
static noinline void provoke_rcu_stall(void) { unsigned long end = jiffies + 15 * HZ; rcu_read_lock(); while (time_before(jiffies, end)) cpu_relax(); rcu_read_unlock(); }
static int provoke_sleeper(void *unused) { mutex_lock(&provoke_a); mutex_unlock(&provoke_a); return 0; }
static noinline void provoke_hung(void) { mutex_lock(&provoke_a); kthread_run(provoke_sleeper, NULL, "provoke_sleep"); msleep(25000); mutex_unlock(&provoke_a); }
static void provoke_work_fn(struct work_struct *w) { unsigned long end = jiffies + 25 * HZ; while (time_before(jiffies, end)) cpu_relax(); }
static DECLARE_WORK(provoke_work, provoke_work_fn);
static void provoke_work2_fn(struct work_struct *w) { }
static DECLARE_WORK(provoke_work2, provoke_work2_fn);
static noinline void provoke_wq(void) { schedule_work_on(1, &provoke_work); msleep(10); schedule_work_on(1, &provoke_work2); flush_work(&provoke_work); }
static void provoke_leak_fn(struct work_struct *w) { mutex_lock(&provoke_b); }
static DECLARE_WORK(provoke_leak, provoke_leak_fn);
static noinline void provoke_wq_leak(void) { schedule_work(&provoke_leak); flush_work(&provoke_leak); msleep(100); }
static noinline void provoke_preempt(void) { pr_info("%d\n", smp_processor_id()); }
static noinline void provoke_panic(void) { panic("provoked panic %d", 7); }
static noinline int provoke_deep(int n) { volatile char fill[256]; fill[0] = n; return n ? provoke_deep(n + 1) + fill[0] : 0; }
static noinline void provoke_slab(void) { char *p = kmalloc(32, GFP_KERNEL); p[32] = 1; kfree(p); }

static int __init provoke_init(void)
{
	if (!strcmp(what, "circular")) { provoke_ab(); provoke_ba(); }
	else if (!strcmp(what, "recursive")) provoke_recursive();
	else if (!strcmp(what, "inconsistent")) provoke_inconsistent();
	else if (!strcmp(what, "order")) provoke_order();
	else if (!strcmp(what, "inversion")) provoke_inversion();
	else if (!strcmp(what, "balance")) provoke_balance();
	else if (!strcmp(what, "held")) provoke_held();
	else if (!strcmp(what, "rcu")) provoke_rcu();
	else if (!strcmp(what, "atomic")) provoke_atomic();
	else if (!strcmp(what, "sched")) provoke_sched();
	else if (!strcmp(what, "bug")) provoke_bug();
	else if (!strcmp(what, "null")) provoke_null();
	else if (!strcmp(what, "gpf")) provoke_gpf();
	else if (!strcmp(what, "paging")) provoke_paging();
	else if (!strcmp(what, "list")) provoke_list_fault();
	else if (!strcmp(what, "refcount")) provoke_refcount();
	else if (!strcmp(what, "softlockup")) provoke_spin_forever();
	else if (!strcmp(what, "rcustall")) provoke_rcu_stall();
	else if (!strcmp(what, "hung")) provoke_hung();
	else if (!strcmp(what, "wq")) provoke_wq();
	else if (!strcmp(what, "wqleak")) provoke_wq_leak();
	else if (!strcmp(what, "preempt")) provoke_preempt();
	else if (!strcmp(what, "panic")) provoke_panic();
	else if (!strcmp(what, "stack")) pr_info("%d\n", provoke_deep(1));
	else if (!strcmp(what, "slab")) provoke_slab();
	else provoke_warn();
	return -EAGAIN;
}
module_init(provoke_init);
MODULE_LICENSE("GPL");
