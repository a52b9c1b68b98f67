-- {worker} → nothing. The worker is dead; others see to what it leaves.

if redis.call("EXISTS", open_of(step.worker), rows_of(step.worker)) > 0 then
  redis.call("ZADD", WORKERS, 0, step.worker)
else
  redis.call("ZREM", WORKERS, step.worker)
end
