BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
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
INSERT INTO "artifact" VALUES('20250101-090000-70y5','toy_collect',1,'runs/20250101-090000-70y5/toy_collect/1','4ffa9f0b0452af561fe9a26ffb3fcbb1f685c3e429d7a8277d402942a65a1f22','{}','{"toy.seed": 1}','live',NULL,1.73572200029884719848e+09);
INSERT INTO "artifact" VALUES('20250101-090000-70y5','toy_preprocess',1,'runs/20250101-090000-70y5/toy_preprocess/1','8b83713587b0ca57512c9420cc2ab8118b21c895999cc5fa745d89a680e2509d','{"toy_collect": "4ffa9f0b0452af561fe9a26ffb3fcbb1f685c3e429d7a8277d402942a65a1f22"}','{"toy.seed": 1}','live',NULL,1.73572200056666779517e+09);
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
INSERT INTO "attempt" VALUES('20250101-090000-70y5','toy_collect',1,'committed','',1735722000.04246,1.73572200029988217354e+09,4343,1.0,'a-pc',NULL,NULL);
INSERT INTO "attempt" VALUES('20250101-090000-70y5','toy_preprocess',1,'committed','',1.73572200034585070616e+09,1.73572200056724810601e+09,4343,1.0,'a-pc',NULL,NULL);
INSERT INTO "attempt" VALUES('20250101-090000-70y5','toy_train',1,'running',NULL,1735722000.62111,NULL,4343,1.0,'a-pc',NULL,NULL);
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
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',1,1,'runs/20250101-090000-70y5/toy_train/checkpoints/1','149e949a0f6e517ae4153ad1966c0c89e05bc9dcdf77baf087a680693d122144',1.0,'pruned',1.73572200092699885365e+09,1.73572200092699885365e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',2,1,'runs/20250101-090000-70y5/toy_train/checkpoints/2','8c327a8b59259e3cfecc377f992793b00375baa883131c223f641caec1ae5bf3',2.0,'pruned',1.73572200105095887177e+09,1.73572200105095887177e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',3,1,'runs/20250101-090000-70y5/toy_train/checkpoints/3','f8e504e73cddd1b2b50bfa07257be28bd8bfc13d050a6161b530fd6db06717ad',3.0,'pruned',1.73572200117111897469e+09,1.73572200117111897469e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',4,1,'runs/20250101-090000-70y5/toy_train/checkpoints/4','da657efe3b5d2f672b94573ddb1d4593d066001d0dcb0e075d9b212d4bbe37d9',4.0,'live',1.73572200128385519977e+09,1.73572200128385519977e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',5,1,'runs/20250101-090000-70y5/toy_train/checkpoints/5','7f39bd223b82fabc448a636e691b7f1cb11ea83bbc3c5b32b6f07da55faf01ba',5.0,'live',1.73572200141095805167e+09,1.73572200141095805167e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',6,1,'runs/20250101-090000-70y5/toy_train/checkpoints/6','c6c676adc32f395e7726cc9726ca05994cab97d4b1673c1440a563ba7d473de8',6.0,'live',1.73572200152940130232e+09,1.73572200152940130232e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',7,1,'runs/20250101-090000-70y5/toy_train/checkpoints/7','98a4e00575bcc642edf3355a5f207f18ee4cc8dbf4cc0d4280a99a03d5819c5a',7.0,'live',1.7357220016511204243e+09,1.7357220016511204243e+09);
INSERT INTO "checkpoint" VALUES('20250101-090000-70y5','toy_train',8,1,'runs/20250101-090000-70y5/toy_train/checkpoints/8','cb9bd3f2f1e1b3989a1c9d67a756a8ab49709bf793263937362cb693f0f23099',8.0,'live',1.73572200177088856697e+09,1.73572200177088856697e+09);
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
INSERT INTO "history" VALUES('20250101-090000-70y5',1,1.7357220000277433395e+09,'idle','collecting','start','toy_collect',0,'runner 17712@a-pc','the run begins',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',2,1.73572200004351019858e+09,'collecting','collecting','begin','toy_collect',1,'runner 17712@a-pc','toy_collect, attempt 1',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',3,1.73572200030174803734e+09,'collecting','preprocessing','advance','toy_collect',0,'runner 17712@a-pc','toy_collect committed 3 files',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',4,1.73572200034642386431e+09,'preprocessing','preprocessing','begin','toy_preprocess',1,'runner 17712@a-pc','toy_preprocess, attempt 1',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',5,1.73572200056795716283e+09,'preprocessing','training','advance','toy_preprocess',0,'runner 17712@a-pc','toy_preprocess committed 3 files',NULL);
INSERT INTO "history" VALUES('20250101-090000-70y5',6,1.73572200062202429771e+09,'training','training','begin','toy_train',1,'runner 17712@a-pc','toy_train, attempt 1',NULL);
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
INSERT INTO "lease" VALUES('runner',1,'a-pc','a-boot',4242,1.0,1.73572200177042603496e+09,1.73572203177042603495e+09);
CREATE TABLE ledger (
	run_id VARCHAR(64) NOT NULL, 
	"key" VARCHAR(128) NOT NULL, 
	failures INTEGER NOT NULL, 
	position FLOAT, 
	updated_at FLOAT NOT NULL, 
	CONSTRAINT pk_ledger PRIMARY KEY (run_id, "key"), 
	CONSTRAINT fk_ledger_run_id FOREIGN KEY(run_id) REFERENCES run (id)
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
	finished_at FLOAT, 
	CONSTRAINT pk_run PRIMARY KEY (id), 
	CONSTRAINT ck_run_state CHECK (state IN ('idle', 'collecting', 'preprocessing', 'training', 'integrating', 'evaluating', 'uploading', 'cleaning_up', 'completed', 'out_of_memory', 'disk_full', 'network_failed', 'hub_refused', 'dependency_missing', 'subprocess_failed', 'data_invalid', 'diverged', 'stalled', 'device_failed', 'crashed', 'waiting_for_resources', 'backing_off', 'paused', 'needs_attention'))
);
INSERT INTO "run" VALUES('20250101-090000-70y5','training','toy_train',1,6,1,'["toy_collect", "toy_preprocess", "toy_train"]','{"files": ["configs/toy.yaml"], "provenance": {"automation.backoff.initial": "configs/toy.yaml:9:4", "automation.backoff.max": "configs/toy.yaml:10:4", "automation.checkpoint_interval": "default", "automation.heartbeat_seconds": "default", "automation.keep_checkpoints": "default", "automation.lease_seconds": "default", "automation.max_attempts_without_progress": "default", "automation.on_config_change": "default", "automation.stall_timeout": "default", "automation.steps": "configs/toy.yaml:3:3", "automation.stop_grace": "default", "logging.backups": "default", "logging.directory": "default", "logging.level": "default", "logging.max_bytes": "default", "notifications.desktop": "default", "notifications.min_severity": "default", "notifications.urls": "default", "resources.min_free_disk": "configs/toy.yaml:14:3", "resources.min_ram": "configs/toy.yaml:15:3", "resources.min_vram": "default", "resources.poll_interval": "configs/toy.yaml:16:3", "resources.probe_interval": "default", "toy.every_checkpoint": "configs/toy.yaml:19:3", "toy.fault": "default", "toy.fault_after": "default", "toy.fault_step": "default", "toy.fault_times": "default", "toy.items": "default", "toy.need_disk": "default", "toy.need_file": "default", "toy.pause": "configs/toy.yaml:20:3", "toy.seed": "default"}, "values": {"automation": {"backoff": {"initial": 0.01, "max": 0.05}, "checkpoint_interval": 180.0, "heartbeat_seconds": 5.0, "keep_checkpoints": 5, "lease_seconds": 30.0, "max_attempts_without_progress": 3, "on_config_change": "keep", "stall_timeout": 1800.0, "steps": ["toy_collect", "toy_preprocess", "toy_train"], "stop_grace": 25.0}, "logging": {"backups": 5, "directory": "logs", "level": "info", "max_bytes": 20971520}, "notifications": {"desktop": false, "min_severity": "warning", "urls": []}, "resources": {"min_free_disk": 64000, "min_ram": 1000000, "min_vram": 0, "poll_interval": 0.1, "probe_interval": 10.0}, "toy": {"every_checkpoint": true, "fault": "", "fault_after": 0, "fault_step": "toy_train", "fault_times": 1, "items": 20, "need_disk": 0, "need_file": "", "pause": 0.1, "seed": 1}}}','@HOME@/configs/toy.yaml',NULL,NULL,NULL,NULL,1735722000.0,NULL);
COMMIT;
