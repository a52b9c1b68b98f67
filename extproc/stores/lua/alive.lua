-- {worker} → 1 or 0.

local dies = redis.call("ZSCORE", WORKERS, step.worker)
return dies and tonumber(dies) > now and 1 or 0
