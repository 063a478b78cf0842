BEGIN TRANSACTION;
CREATE TABLE action (
	incident_id INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	args JSON, 
	status VARCHAR(16) NOT NULL, 
	intent_at FLOAT NOT NULL, 
	outcome_at FLOAT, 
	outcome JSON, 
	CONSTRAINT pk_action PRIMARY KEY (incident_id, seq), 
	CONSTRAINT ck_action_status CHECK (status IN ('intent', 'done', 'failed', 'skipped')), 
	CONSTRAINT fk_action_incident_id FOREIGN KEY(incident_id) REFERENCES incident (id)
);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE artifact (
	run_id VARCHAR(64) NOT NULL, 
	step VARCHAR(64) NOT NULL, 
	n INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	identity VARCHAR(64) NOT NULL, 
	inputs JSON NOT NULL, 
	settings JSON NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	reused_from VARCHAR(64), 
	committed_at FLOAT NOT NULL, 
	CONSTRAINT pk_artifact PRIMARY KEY (run_id, step, n), 
	CONSTRAINT ck_artifact_status CHECK (status IN ('live', 'damaged', 'superseded')), 
	CONSTRAINT fk_artifact_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
INSERT INTO "artifact" VALUES('20250101-090000-70y5','toy_collect',1,'runs/20250101-090000-70y5/toy_collect/1','4ffa9f0b0452af561fe9a26ffb3fcbb1f685c3e429d7a8277d402942a65a1f22','{}','{"toy.seed": 1}','live',NULL,1.73572200052462339396e+09);
INSERT INTO "artifact" VALUES('20250101-090000-70y5','toy_preprocess',1,'runs/20250101-090000-70y5/toy_preprocess/1','8b83713587b0ca57512c9420cc2ab8118b21c895999cc5fa745d89a680e2509d','{"toy_collect": "4ffa9f0b0452af561fe9a26ffb3fcbb1f685c3e429d7a8277d402942a65a1f22"}','{"toy.seed": 1}','live',NULL,1.73572200071241378779e+09);
CREATE TABLE attempt (
	run_id VARCHAR(64) NOT NULL, 
	step VARCHAR(64) NOT NULL, 
	n INTEGER NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	reason TEXT, 
	started_at FLOAT NOT NULL, 
	ended_at FLOAT, 
	pid INTEGER, 
	pid_started FLOAT, 
	host TEXT, 
	progress JSON, 
	failure JSON, 
	CONSTRAINT pk_attempt PRIMARY KEY (run_id, step, n), 
	CONSTRAINT ck_attempt_status CHECK (status IN ('running', 'committed', 'failed', 'stopped', 'cut_off')), 
	CONSTRAINT fk_attempt_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
INSERT INTO "attempt" VALUES('20250101-090000-70y5','toy_collect',1,'committed','',1.7357220003378117084e+09,1.73572200052554297448e+09,4343,1.0,'a-pc',NULL,NULL);
INSERT INTO "attempt" VALUES('20250101-090000-70y5','toy_preprocess',1,'committed','',1.73572200053669357302e+09,1.73572200071307563779e+09,4343,1.0,'a-pc',NULL,NULL);
INSERT INTO "attempt" VALUES('20250101-090000-70y5','toy_train',1,'running',NULL,1.73572200072319078449e+09,NULL,4343,1.0,'a-pc',NULL,NULL);
CREATE TABLE checkpoint (
	run_id VARCHAR(64) NOT NULL, 
	step VARCHAR(64) NOT NULL, 
	n INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	identity VARCHAR(64) NOT NULL, 
	position FLOAT NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	verified_at FLOAT, 
	committed_at FLOAT NOT NULL, 
	CONSTRAINT pk_checkpoint PRIMARY KEY (run_id, step, n), 
	CONSTRAINT ck_checkpoint_status CHECK (status IN ('live', 'damaged', 'pruned')), 
	CONSTRAINT fk_checkpoint_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',1,1,'runs/20250101-090000-70y5/toy_train/checkpoints/1','149e949a0f6e517ae4153ad1966c0c89e05bc9dcdf77baf087a680693d122144',1.0,'pruned',1735722000.99695,1735722000.99695);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',2,1,'runs/20250101-090000-70y5/toy_train/checkpoints/2','8c327a8b59259e3cfecc377f992793b00375baa883131c223f641caec1ae5bf3',2.0,'pruned',1.73572200109900760646e+09,1.73572200109900760646e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',3,1,'runs/20250101-090000-70y5/toy_train/checkpoints/3','f8e504e73cddd1b2b50bfa07257be28bd8bfc13d050a6161b530fd6db06717ad',3.0,'pruned',1.73572200120409870149e+09,1.73572200120409870149e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',4,1,'runs/20250101-090000-70y5/toy_train/checkpoints/4','da657efe3b5d2f672b94573ddb1d4593d066001d0dcb0e075d9b212d4bbe37d9',4.0,'live',1.73572200130631470677e+09,1.73572200130631470677e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',5,1,'runs/20250101-090000-70y5/toy_train/checkpoints/5','7f39bd223b82fabc448a636e691b7f1cb11ea83bbc3c5b32b6f07da55faf01ba',5.0,'live',1.73572200140874195097e+09,1.73572200140874195097e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',6,1,'runs/20250101-090000-70y5/toy_train/checkpoints/6','c6c676adc32f395e7726cc9726ca05994cab97d4b1673c1440a563ba7d473de8',6.0,'live',1.73572200151093626024e+09,1.73572200151093626024e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',7,1,'runs/20250101-090000-70y5/toy_train/checkpoints/7','98a4e00575bcc642edf3355a5f207f18ee4cc8dbf4cc0d4280a99a03d5819c5a',7.0,'live',1.73572200161293387415e+09,1.73572200161293387415e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',8,1,'runs/20250101-090000-70y5/toy_train/checkpoints/8','cb9bd3f2f1e1b3989a1c9d67a756a8ab49709bf793263937362cb693f0f23099',8.0,'live',1.73572200171528339381e+09,1.73572200171528339381e+09);
CREATE TABLE command (
	id INTEGER NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	args JSON NOT NULL, 
	operator TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	taken_at FLOAT, 
	outcome TEXT, 
	CONSTRAINT pk_command PRIMARY KEY (id), 
	CONSTRAINT fk_command_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
CREATE TABLE event (
	id INTEGER NOT NULL, 
	run_id VARCHAR(64), 
	step VARCHAR(64), 
	attempt INTEGER, 
	source VARCHAR(16) NOT NULL, 
	at FLOAT NOT NULL, 
	text TEXT NOT NULL, 
	data JSON, 
	CONSTRAINT pk_event PRIMARY KEY (id), 
	CONSTRAINT fk_event_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
CREATE TABLE history (
	run_id VARCHAR(64) NOT NULL, 
	rev INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	from_state VARCHAR(32) NOT NULL, 
	to_state VARCHAR(32) NOT NULL, 
	"trigger" VARCHAR(64) NOT NULL, 
	step VARCHAR(64), 
	attempt INTEGER, 
	who TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	detail JSON, 
	CONSTRAINT pk_history PRIMARY KEY (run_id, rev), 
	CONSTRAINT fk_history_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
INSERT INTO "history" VALUES('20250101-090000-70y5',1,1.73572200033083271983e+09,'idle','collecting','start','toy_collect',0,'runner 12295@a-pc','the run begins',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',2,1.73572200033872866631e+09,'collecting','collecting','begin','toy_collect',1,'runner 12295@a-pc','toy_collect, attempt 1',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',3,1.73572200052810478214e+09,'collecting','preprocessing','advance','toy_collect',0,'runner 12295@a-pc','toy_collect committed 3 files',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',4,1.73572200053710055346e+09,'preprocessing','preprocessing','begin','toy_preprocess',1,'runner 12295@a-pc','toy_preprocess, attempt 1',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',5,1.73572200071422862999e+09,'preprocessing','training','advance','toy_preprocess',0,'runner 12295@a-pc','toy_preprocess committed 3 files',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',6,1.73572200072366762159e+09,'training','training','begin','toy_train',1,'runner 12295@a-pc','toy_train, attempt 1',NULL);
CREATE TABLE incident (
	id INTEGER NOT NULL, 
	run_id VARCHAR(64), 
	step VARCHAR(64), 
	attempt INTEGER, 
	state VARCHAR(32) NOT NULL, 
	rule VARCHAR(128), 
	severity VARCHAR(16) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	opened_at FLOAT NOT NULL, 
	closed_at FLOAT, 
	detail JSON, 
	CONSTRAINT pk_incident PRIMARY KEY (id), 
	CONSTRAINT ck_incident_status CHECK (status IN ('open', 'recovering', 'recovered', 'escalated', 'withdrawn', 'observed')), 
	CONSTRAINT fk_incident_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
CREATE TABLE lease (
	name VARCHAR(32) NOT NULL, 
	epoch INTEGER NOT NULL, 
	host TEXT, 
	boot TEXT, 
	pid INTEGER, 
	pid_started FLOAT, 
	heartbeat_at FLOAT, 
	expires_at FLOAT, 
	CONSTRAINT pk_lease PRIMARY KEY (name)
);
INSERT INTO "lease" VALUES('runner',1,'a-pc','a-boot',4242,1.0,1.73572200171480083463e+09,1.73572203171480083467e+09);
CREATE TABLE ledger (
	run_id VARCHAR(64) NOT NULL, 
	"key" VARCHAR(128) NOT NULL, 
	failures INTEGER NOT NULL, 
	position FLOAT, 
	updated_at FLOAT NOT NULL, 
	CONSTRAINT pk_ledger PRIMARY KEY (run_id, "key"), 
	CONSTRAINT fk_ledger_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
CREATE TABLE log_mark (
	path VARCHAR(1024) NOT NULL, 
	file VARCHAR(64) NOT NULL, 
	head VARCHAR(64) NOT NULL, 
	head_bytes INTEGER NOT NULL, 
	"offset" BIGINT NOT NULL, 
	line BIGINT NOT NULL, 
	encoding VARCHAR(16) NOT NULL, 
	updated_at FLOAT NOT NULL, 
	CONSTRAINT pk_log_mark PRIMARY KEY (path)
);
CREATE TABLE override (
	run_id VARCHAR(64) NOT NULL, 
	"key" VARCHAR(128) NOT NULL, 
	value JSON, 
	was JSON, 
	"by" TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	CONSTRAINT pk_override PRIMARY KEY (run_id, "key"), 
	CONSTRAINT fk_override_run_id FOREIGN KEY(run_id) REFERENCES run (id)
);
CREATE TABLE run (
	id VARCHAR(64) NOT NULL, 
	state VARCHAR(32) NOT NULL, 
	step VARCHAR(64), 
	attempt INTEGER NOT NULL, 
	rev INTEGER NOT NULL, 
	epoch INTEGER NOT NULL, 
	steps JSON NOT NULL, 
	config JSON NOT NULL, 
	config_path TEXT, 
	parent VARCHAR(64), 
	reuse JSON, 
	incident JSON, 
	next_retry_at FLOAT, 
	created_at FLOAT NOT NULL, 
	finished_at FLOAT, ledgers JSON, 
	CONSTRAINT pk_run PRIMARY KEY (id), 
	CONSTRAINT ck_run_state CHECK (state IN ('idle', 'collecting', 'preprocessing', 'training', 'integrating', 'evaluating', 'uploading', 'cleaning_up', 'completed', 'out_of_memory', 'disk_full', 'network_failed', 'hub_refused', 'dependency_missing', 'subprocess_failed', 'data_invalid', 'diverged', 'stalled', 'device_failed', 'crashed', 'waiting_for_resources', 'backing_off', 'paused', 'needs_attention'))
);
INSERT INTO "run" VALUES('20250101-090000-70y5','training','toy_train',1,6,1,'["toy_collect", "toy_preprocess", "toy_train"]','{"files": ["configs/toy.yaml"], "provenance": {"automation.backoff.initial": "configs/toy.yaml:9:4", "automation.backoff.max": "configs/toy.yaml:10:4", "automation.checkpoint_interval": "default", "automation.heartbeat_seconds": "default", "automation.keep_checkpoints": "default", "automation.lease_seconds": "default", "automation.max_attempts_without_progress": "default", "automation.on_config_change": "default", "automation.stall_timeout": "default", "automation.steps": "configs/toy.yaml:3:3", "automation.stop_grace": "default", "benchmark.alpha": "default", "benchmark.batch_size": "default", "benchmark.bootstrap_resamples": "default", "benchmark.confidence": "default", "benchmark.max_items": "default", "benchmark.power": "default", "benchmark.primary_comparison": "default", "benchmark.primary_metric": "default", "benchmark.seed": "default", "benchmark.shown_disagreements": "default", "benchmark.variants": "default", "conversion.author": "default", "conversion.languages": "default", "conversion.license": "default", "conversion.merge_dtype": "default", "conversion.name": "default", "conversion.shard_size": "default", "conversion.types": "default", "data.licenses": "default", "data.max_samples": "default", "data.preprocess.benchmark_ngram": "default", "data.preprocess.benchmarks": "default", "data.preprocess.max_chars": "default", "data.preprocess.min_chars": "default", "data.preprocess.near_duplicates.drop_at": "default", "data.preprocess.near_duplicates.group_at": "default", "data.preprocess.near_duplicates.image_distance": "default", "data.preprocess.near_duplicates.ngram_en": "default", "data.preprocess.near_duplicates.ngram_ja": "default", "data.preprocess.near_duplicates.on_conflict": "default", "data.preprocess.near_duplicates.permutations": "default", "data.preprocess.outliers.max_fraction": "default", "data.preprocess.outliers.robust_z": "default", "data.preprocess.outliers.trees": "default", "data.preprocess.pii": "default", "data.preprocess.report_examples": "default", "data.preprocess.split.test": "default", "data.preprocess.split.validation": "default", "data.seed": "default", "data.shard_size": "default", "data.sources": "default", "logging.backups": "default", "logging.directory": "default", "logging.level": "default", "logging.max_bytes": "default", "model.base": "default", "model.dtype": "default", "model.revision": "default", "model.tiny.context_length": "default", "model.tiny.heads": "default", "model.tiny.hidden_size": "default", "model.tiny.intermediate_size": "default", "model.tiny.layers": "default", "model.tiny.pretrain_learning_rate": "default", "model.tiny.pretrain_steps": "default", "model.tiny.vocab_size": "default", "notifications.desktop": "default", "notifications.min_severity": "default", "notifications.urls": "default", "resources.hub_endpoints": "default", "resources.min_free_disk": "configs/toy.yaml:14:3", "resources.min_ram": "configs/toy.yaml:15:3", "resources.min_vram": "default", "resources.poll_interval": "configs/toy.yaml:16:3", "resources.probe_interval": "default", "resources.second_storage": "default", "toy.every_checkpoint": "configs/toy.yaml:19:3", "toy.fault": "default", "toy.fault_after": "default", "toy.fault_step": "default", "toy.fault_times": "default", "toy.items": "default", "toy.need_disk": "default", "toy.need_file": "default", "toy.pause": "configs/toy.yaml:20:3", "toy.seed": "default", "training.batch_size": "default", "training.gradient_accumulation_steps": "default", "training.gradient_checkpointing": "default", "training.learning_rate": "default", "training.lora.alpha": "default", "training.lora.dropout": "default", "training.lora.r": "default", "training.lora.targets": "default", "training.max_length": "default", "training.max_samples": "default", "training.ppo.clip": "default", "training.ppo.entropy": "default", "training.ppo.epochs": "default", "training.ppo.gamma": "default", "training.ppo.kl_init": "default", "training.ppo.kl_rate": "default", "training.ppo.kl_target": "default", "training.ppo.lam": "default", "training.ppo.lr_scale": "default", "training.ppo.max_grad_norm": "default", "training.ppo.max_new_tokens": "default", "training.ppo.minibatch": "default", "training.ppo.rollout_batch": "default", "training.ppo.temperature": "default", "training.ppo.updates": "default", "training.ppo.value_clip": "default", "training.ppo.value_lr_scale": "default", "training.ppo.value_weight": "default", "training.seed": "default", "training.sft.epochs": "default", "training.sft.lr_scale": "default", "training.sft.max_steps": "default", "training.sft.warmup": "default", "training.threads": "default", "upload.endpoint": "default", "upload.folder": "default", "upload.include_merged": "default", "upload.languages": "default", "upload.license": "default", "upload.private": "default", "upload.repo_id": "default", "upload.tags": "default", "upload.target": "default", "upload.token_env": "default"}, "values": {"automation": {"backoff": {"initial": 0.01, "max": 0.05}, "checkpoint_interval": 180.0, "heartbeat_seconds": 5.0, "keep_checkpoints": 5, "lease_seconds": 30.0, "max_attempts_without_progress": 3, "on_config_change": "keep", "stall_timeout": 1800.0, "steps": ["toy_collect", "toy_preprocess", "toy_train"], "stop_grace": 25.0}, "benchmark": {"alpha": 0.05, "batch_size": 16, "bootstrap_resamples": 5000, "confidence": 0.95, "max_items": 0, "power": 0.8, "primary_comparison": "A-C", "primary_metric": "accuracy", "seed": 20240923, "shown_disagreements": 100, "variants": ["A", "B", "C"]}, "conversion": {"author": "", "languages": ["ja", "en"], "license": "apache-2.0", "merge_dtype": "float32", "name": "SO8T-Phi-3-tiny", "shard_size": "2GB", "types": ["f16"]}, "data": {"licenses": ["MIT", "Apache-2.0"], "max_samples": 100000, "preprocess": {"benchmark_ngram": 30, "benchmarks": [], "max_chars": 8000, "min_chars": 2, "near_duplicates": {"drop_at": 0.9, "group_at": 0.7, "image_distance": 2, "ngram_en": 5, "ngram_ja": 3, "on_conflict": "stricter", "permutations": 128}, "outliers": {"max_fraction": 0.05, "robust_z": 5.0, "trees": 100}, "pii": "drop", "report_examples": 3, "split": {"test": 0.2, "validation": 0.1}}, "seed": 42, "shard_size": 512, "sources": [{"kind": "prompts", "name": "prompts", "per_family": 12}, {"image_size": 96, "images": 40, "kind": "generated", "name": "generated", "sample_rate": 16000, "seconds": 0.5, "sounds": 16}, {"kind": "distributions", "limit": 200, "name": "distributions", "paragraphs": 4}]}, "logging": {"backups": 5, "directory": "logs", "level": "info", "max_bytes": 20971520}, "model": {"base": "quickstart:tiny-phi3", "dtype": "auto", "revision": "main", "tiny": {"context_length": 2048, "heads": 8, "hidden_size": 768, "intermediate_size": 1024, "layers": 2, "pretrain_learning_rate": 0.001, "pretrain_steps": 40, "vocab_size": 2400}}, "notifications": {"desktop": false, "min_severity": "warning", "urls": []}, "resources": {"hub_endpoints": [], "min_free_disk": 64000, "min_ram": 1000000, "min_vram": 0, "poll_interval": 0.1, "probe_interval": 10.0, "second_storage": ""}, "toy": {"every_checkpoint": true, "fault": "", "fault_after": 0, "fault_step": "toy_train", "fault_times": 1, "items": 20, "need_disk": 0, "need_file": "", "pause": 0.1, "seed": 1}, "training": {"batch_size": 16, "gradient_accumulation_steps": 1, "gradient_checkpointing": false, "learning_rate": 0.003, "lora": {"alpha": 32.0, "dropout": 0.0, "r": 16, "targets": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens"]}, "max_length": 192, "max_samples": 0, "ppo": {"clip": 0.2, "entropy": 0.003, "epochs": 2, "gamma": 1.0, "kl_init": 0.05, "kl_rate": 0.1, "kl_target": 1.0, "lam": 0.95, "lr_scale": 0.3, "max_grad_norm": 1.0, "max_new_tokens": 16, "minibatch": 32, "rollout_batch": 64, "temperature": 1.0, "updates": 24, "value_clip": 0.2, "value_lr_scale": 10.0, "value_weight": 0.5}, "seed": 42, "sft": {"epochs": 1.5, "lr_scale": 1.0, "max_steps": 0, "warmup": 0.05}, "threads": 2}, "upload": {"endpoint": "", "folder": "hub", "include_merged": false, "languages": ["ja", "en"], "license": "apache-2.0", "private": true, "repo_id": "local/so8t-model", "tags": ["so8t", "safety", "gguf"], "target": "folder", "token_env": "HF_TOKEN"}}}','@HOME@/configs/toy.yaml',NULL,NULL,NULL,NULL,1735722000.0,NULL,'{"recovery": {"rules": {}, "roots": {}, "recent": [], "total": 0}, "furthest": {"toy_train": 8}}');
CREATE TABLE watcher (
	name VARCHAR(16) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	pid INTEGER NOT NULL, 
	pid_started FLOAT NOT NULL, 
	way TEXT NOT NULL, 
	blind TEXT, 
	at FLOAT NOT NULL, 
	CONSTRAINT pk_watcher PRIMARY KEY (name, host)
);
INSERT INTO "watcher" VALUES('runner','a-pc',4242,1.0,'at once, and looking every 300 s',NULL,1.7357220005183103084e+09);
CREATE INDEX ix_event_run_id_step_attempt ON event (run_id, step, attempt);
COMMIT;
